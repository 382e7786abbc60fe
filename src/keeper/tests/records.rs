//! The record beside the key: read when a tenure begins, written when it is given up.

use super::*;

const RECORD: &str = "lab/one/.last-run";

fn record_key() -> Key {
    Key::new(RECORD).unwrap()
}

fn record(at_end: Option<(FencingToken, &str)>) -> Option<Record> {
    let at_end = at_end.map(|(token, text)| (token, text.as_bytes().to_vec()));
    Some(Record { key: record_key(), at_end })
}

fn written(lab: &Lab) -> Option<String> {
    lab.consul.peek(&record_key()).map(|pair| String::from_utf8(pair.value).unwrap())
}

/// What the present tenure has read.
fn read(one: &Contender) -> Option<String> {
    match one.view().lock {
        LockView::Held { record: Some(record), .. } => {
            Some(String::from_utf8(record.to_vec()).unwrap())
        }
        _ => None,
    }
}

async fn put(lab: &Lab, text: &str) {
    lab.consul.put(&record_key(), text.as_bytes(), None, PutMode::Plain).await.unwrap();
}

async fn holding(lab: &Lab) -> (Contender, FencingToken) {
    let mut one = lab.contender("one");
    one.wanted.stance = for_pod("a");
    one.wanted.record = record(None);
    let token = one.holds(lab).await;
    lab.until(MOMENT, "the record", || read(&one).is_some()).await;
    (one, token)
}

#[tokio::test(start_paused = true)]
async fn each_tenure_reads_the_record_anew() {
    let lab = Lab::new();
    put(&lab, "earlier").await;
    let (mut one, _) = holding(&lab).await;
    assert_eq!(read(&one).as_deref(), Some("earlier"));
    put(&lab, "later").await;
    one.change(|wanted| wanted.stance = for_pod("b"));
    lab.until(MOMENT, "the new record", || read(&one).as_deref() == Some("later")).await;
}

#[tokio::test(start_paused = true)]
async fn a_tenure_that_is_given_up_writes_its_record_and_the_next_does_not() {
    let lab = Lab::new();
    let (mut one, token) = holding(&lab).await;
    assert_eq!(read(&one).as_deref(), Some(""), "there is none");
    one.change(|wanted| {
        wanted.record = record(Some((token, "done")));
        wanted.stance = for_pod("b");
    });
    lab.until(MOMENT, "the record", || read(&one).as_deref() == Some("done")).await;
    put(&lab, "by hand").await;
    one.change(|wanted| wanted.stance = Stance::StandBy(EndReason::PodFinished));
    lab.until(MOMENT, "the release", || one.view().lock == LockView::Standby).await;
    assert_eq!(written(&lab).as_deref(), Some("by hand"), "it was about another tenure");
}

#[tokio::test(start_paused = true)]
async fn the_record_is_there_as_soon_as_the_key_is_free() {
    let lab = Lab::new();
    let (mut one, token) = holding(&lab).await;
    one.change(|wanted| {
        wanted.record = record(Some((token, "done")));
        wanted.stance = Stance::StandBy(EndReason::PodFinished);
    });
    lab.until(MOMENT, "the release", || lab.pair().session.is_none()).await;
    assert_eq!(written(&lab).as_deref(), Some("done"));
    let record = lab.consul.peek(&record_key()).unwrap();
    assert_eq!(record.modify_index, lab.pair().modify_index, "one commit");
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_reply_was_lost_writes_its_record_once() {
    let lab = Lab::new();
    let (mut one, token) = holding(&lab).await;
    one.line.next(Operation::Transaction, Fate::LoseReply);
    one.change(|wanted| {
        wanted.record = record(Some((token, "done")));
        wanted.stance = Stance::StandBy(EndReason::PodFinished);
    });
    lab.pass(S).await;
    // Before it is sent again, somebody else has held the key and written more.
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    put(&lab, "more").await;
    assert!(lab.release(&stranger).await);
    lab.until(S * 20, "the end", || one.view().lock == LockView::Standby).await;
    assert_eq!(written(&lab).as_deref(), Some("more"));
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_the_key_records_nothing() {
    let lab = Lab::new();
    let (mut one, token) = holding(&lab).await;
    let session = one.session();
    one.line.cut(S * 5);
    lab.consul.destroy_session(&session).await.unwrap();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    one.change(|wanted| {
        wanted.record = record(Some((token, "done")));
        wanted.stance = Stance::StandBy(EndReason::PodFinished);
    });
    lab.until(S * 60, "the end", || one.view().lock == LockView::Standby).await;
    assert_eq!(written(&lab), None);
}
