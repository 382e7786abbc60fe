//! The proxy in front of a server of three lines.

use super::*;
use crate::http::{Head, request};
use std::io::{BufReader, ErrorKind, Read, Write};

/// Answers every request of a connection with the number of requests it has seen in all.
fn counting_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let seen = Arc::clone(&seen);
            thread::spawn(move || {
                let mut reader = BufReader::new(&client);
                while let Ok(Some(_)) = Head::read(&mut reader) {
                    let count = (seen.fetch_add(1, Ordering::SeqCst) + 1).to_string();
                    let head =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", count.len());
                    (&client).write_all((head + &count).as_bytes()).unwrap();
                }
            });
        }
    });
    address
}

fn get(proxy: &Proxy) -> io::Result<String> {
    request(proxy.address(), "GET", "/path", &[], b"").map(|reply| reply.text())
}

/// Sends a request and leaves the reply to the caller, who waits for at most a quarter second.
fn send(proxy: &Proxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(250)))
        .unwrap();
    stream.write_all(b"GET /path HTTP/1.1\r\n\r\n").unwrap();
    stream
}

#[test]
fn a_cut_network_refuses_and_a_healed_one_serves_again() {
    for proxy in [
        Proxy::tcp(counting_server()).unwrap(),
        Proxy::http(counting_server()).unwrap(),
    ] {
        assert_eq!(get(&proxy).unwrap(), "1");
        let mut open = send(&proxy);
        assert!(open.read(&mut [0; 100]).unwrap() > 0);
        proxy.set(Fault::Cut);
        assert_eq!(open.read(&mut [0; 100]).unwrap(), 0);
        assert_eq!(
            get(&proxy).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        proxy.set(Fault::None);
        assert_eq!(get(&proxy).unwrap(), "3");
        assert_eq!(proxy.connections(), 3);
    }
}

#[test]
fn a_blackhole_keeps_what_was_sent_until_it_ends() {
    for proxy in [
        Proxy::tcp(counting_server()).unwrap(),
        Proxy::http(counting_server()).unwrap(),
    ] {
        proxy.set(Fault::Blackhole);
        let mut stream = send(&proxy);
        assert_eq!(
            stream.read(&mut [0; 100]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        proxy.set(Fault::None);
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert!(stream.read(&mut [0; 100]).unwrap() > 0);
    }
}

#[test]
fn delayed_bytes_come_late() {
    let proxy = Proxy::tcp(counting_server()).unwrap();
    proxy.set(Fault::Delay(Duration::from_millis(100)));
    let watch = crate::Stopwatch::start();
    assert_eq!(get(&proxy).unwrap(), "1");
    assert!(watch.elapsed() >= Duration::from_millis(200));
}

#[test]
fn truncated_replies_end_where_they_should() {
    let proxy = Proxy::tcp(counting_server()).unwrap();
    proxy.set(Fault::TruncateReplies(12));
    let mut reply = String::new();
    send(&proxy).read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "HTTP/1.1 200");
}

#[test]
fn ordered_answers_are_given_once_and_to_whom_they_are_meant() {
    let proxy = Proxy::http(counting_server()).unwrap();
    proxy.answer_next(1, "/other", Answer::text(500, "not me"));
    proxy.answer_next(1, "PUT /path", Answer::text(500, "nor me"));
    proxy.answer_next(2, "GET /pa", Answer::text(429, "slow down"));
    assert_eq!(
        (get(&proxy).unwrap(), get(&proxy).unwrap()),
        ("slow down".into(), "slow down".into())
    );
    assert_eq!(get(&proxy).unwrap(), "1");
    assert_eq!(
        (
            proxy.answers_left(),
            proxy.requests("/path"),
            proxy.requests("PUT ")
        ),
        (2, 3, 0)
    );
}

#[test]
fn a_lost_request_is_not_seen_by_the_server_but_one_with_a_lost_reply_is() {
    let proxy = Proxy::http(counting_server()).unwrap();
    proxy.answer_next(1, "/", Answer::RequestLost);
    assert!(get(&proxy).is_err());
    assert_eq!(get(&proxy).unwrap(), "1");
    proxy.answer_next(1, "/", Answer::ReplyLost);
    assert!(get(&proxy).is_err());
    assert_eq!(get(&proxy).unwrap(), "3");
}

#[test]
fn answers_can_be_cut_short_or_never_come() {
    let proxy = Proxy::http(counting_server()).unwrap();
    proxy.answer_next(
        1,
        "/",
        Answer::CutShort {
            status: 200,
            body: b"{\"ID\":".to_vec(),
        },
    );
    assert_eq!(get(&proxy).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    proxy.answer_next(1, "/", Answer::Never);
    let error = send(&proxy).read(&mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(get(&proxy).unwrap(), "1");
}
