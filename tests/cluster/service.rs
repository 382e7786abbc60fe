//! Clients that call a Service without a pause, and what all that they heard says together.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use testbed::Stopwatch;

use crate::bed::ask;

/// Clients of one Service.
const CLIENTS: usize = 2;

/// What a client heard, and when, by its own clock.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    asked: Duration,
    heard: Duration,
    pod: String,
    /// Nothing while the pod was not told yet.
    token: Option<u64>,
}

/// Clients that call a Service until they are dropped.
pub(crate) struct Clients {
    answers: Arc<Mutex<Vec<Answer>>>,
    ended: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn of(service: SocketAddr) -> Clients {
        let (answers, ended) = (Arc::<Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let clock = Arc::new(Stopwatch::start());
        let threads = (0..CLIENTS).map(|_| {
            let (answers, ended) = (Arc::clone(&answers), Arc::clone(&ended));
            let clock = Arc::clone(&clock);
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let asked = clock.elapsed();
                    let Some(answer) = ask(service) else { continue };
                    let heard = clock.elapsed();
                    let pod = answer["pod"].as_str().unwrap().to_owned();
                    let token = answer["token"].as_str().and_then(|token| token.parse().ok());
                    answers.lock().push(Answer { asked, heard, pod, token });
                }
            })
        });
        let threads = threads.collect();
        Clients { answers, ended, threads }
    }

    /// Whether this pod has answered with this token.
    pub(crate) fn heard(&self, pod: &str, token: u64) -> bool {
        let answers = self.answers.lock();
        answers.iter().rev().any(|answer| answer.pod == pod && answer.token == Some(token))
    }

    /// Ends the calls and looks back: nobody answered with a token after somebody else had been
    /// heard with a higher one, and no token came from two pods. So no two pods led at one instant.
    #[track_caller]
    pub(crate) fn check(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for client in self.threads.drain(..) {
            client.join().unwrap();
        }
        let answers = self.answers.lock().clone();
        assert!(answers.len() > 100, "only {} answers", answers.len());
        check(&answers);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn check(answers: &[Answer]) {
    let mut by_token = BTreeMap::new();
    for answer in answers {
        if let Some(token) = answer.token {
            let pod = by_token.entry(token).or_insert_with(|| answer.pod.clone());
            assert_eq!(*pod, answer.pod, "two pods have token {token}");
        }
    }
    let mut heard: Vec<&Answer> = answers.iter().filter(|answer| answer.token.is_some()).collect();
    heard.sort_by_key(|answer| answer.heard);
    let mut asked = heard.clone();
    asked.sort_by_key(|answer| answer.asked);
    // The highest token that anybody had heard before a question was asked.
    let (mut newest, mut next): (Option<&Answer>, usize) = (None, 0);
    for answer in asked {
        while heard.get(next).is_some_and(|before| before.heard < answer.asked) {
            newest = newest.into_iter().chain([heard[next]]).max_by_key(|one| one.token);
            next += 1;
        }
        if let Some(newest) = newest {
            assert!(answer.token >= newest.token, "{answer:?} came after {newest:?}");
        }
    }
}

#[test]
fn two_leaders_at_one_instant_would_be_noticed() {
    let answer = |asked: u64, heard: u64, pod: &str, token| Answer {
        asked: Duration::from_millis(asked),
        heard: Duration::from_millis(heard),
        pod: pod.to_owned(),
        token,
    };
    let good = [
        answer(0, 5, "a", Some(1)),
        answer(4, 9, "b", None),
        answer(6, 12, "a", Some(1)),
        answer(7, 11, "b", Some(2)),
        answer(13, 15, "b", Some(2)),
    ];
    check(&good);
    for bad in [answer(12, 16, "a", Some(1)), answer(12, 16, "a", Some(2))] {
        let all: Vec<Answer> = good.iter().cloned().chain([bad]).collect();
        assert!(std::panic::catch_unwind(|| check(&all)).is_err());
    }
}
