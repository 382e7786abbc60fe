//! Passing HTTP/1.1 on, request by request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Answer, Fault, Pair, Shared};
use crate::http::{Framing, Head};

/// While the server thinks, this often is looked whether the client has left. A reply that comes
/// is passed on at once.
const LOOK: Duration = Duration::from_millis(200);

/// Once a message has begun, the rest of it comes within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Passes requests and replies on until either side closes.
pub(super) fn serve(shared: &Shared, pair: &Pair) -> io::Result<()> {
    let mut client = BufReader::new(&pair.client);
    let mut upstream = BufReader::new(&pair.upstream);
    while let Some(request) = Head::read(&mut client)? {
        let mut body = Vec::new();
        request.request_framing().copy(&mut client, &mut body)?;
        pass(shared)?;
        let (method, path) = request.method_and_path();
        let answer = shared.answer_to(&format!("{method} {path}"));
        match answer {
            Some(Answer::Canned { status, body }) => reply(&pair.client, status, &body, 0)?,
            Some(Answer::CutShort { status, body }) => {
                return reply(&pair.client, status, &body, 1000);
            }
            Some(Answer::Never) => return wait_until_closed(&mut client),
            Some(Answer::RequestLost) => return Ok(()),
            Some(Answer::ReplyLost) => {
                forward(&pair.upstream, &request, &body)?;
                return read_reply(shared, &mut upstream, method, None).map(drop);
            }
            Some(Answer::Late(_)) | None => {
                forward(&pair.upstream, &request, &body)?;
                wait_for_reply(&mut upstream, &pair.client)?;
                if let Some(Answer::Late(delay)) = answer {
                    shared.gate.delay(delay);
                }
                let closes = read_reply(shared, &mut upstream, method, Some(&pair.client))?;
                if closes {
                    return Ok(());
                }
            }
        }
        if request.closes() {
            return Ok(());
        }
    }
    Ok(())
}

/// Waits until bytes may pass.
fn pass(shared: &Shared) -> io::Result<()> {
    if let (Fault::Delay(delay), _) = shared.gate.pass()? {
        shared.gate.delay(delay);
    }
    Ok(())
}

fn forward(mut upstream: &TcpStream, request: &Head, body: &[u8]) -> io::Result<()> {
    upstream.write_all(&[&request.bytes, body].concat())
}

/// Waits until the reply begins, or the client gives up: then the server shall notice.
fn wait_for_reply(upstream: &mut BufReader<&TcpStream>, client: &TcpStream) -> io::Result<()> {
    let socket = *upstream.get_ref();
    socket.set_read_timeout(Some(LOOK))?;
    loop {
        match upstream.fill_buf() {
            Ok(_) => return socket.set_read_timeout(Some(PATIENCE)),
            Err(error) if is_timeout(&error) && !has_left(client)? => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Whether the client has closed its side.
fn has_left(client: &TcpStream) -> io::Result<bool> {
    client.set_nonblocking(true)?;
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false)?;
    Ok(matches!(peeked, Ok(0)))
}

/// Reads one reply and passes it on, if to anybody. Says whether the server closes.
fn read_reply(
    shared: &Shared,
    upstream: &mut BufReader<&TcpStream>,
    method: &str,
    client: Option<&TcpStream>,
) -> io::Result<bool> {
    loop {
        let head = Head::read(upstream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let framing = head.reply_framing(method);
        match client {
            None => framing.copy(upstream, &mut io::sink())?,
            Some(mut client) => {
                pass(shared)?;
                client.write_all(&head.bytes)?;
                framing.copy(upstream, &mut client)?;
            }
        }
        if !head.is_interim() {
            return Ok(head.closes() || framing == Framing::UntilEnd);
        }
    }
}

/// Sends an answer that announces `missing` bytes more than it has.
fn reply(mut client: &TcpStream, status: u16, body: &[u8], missing: usize) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} Injected\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len() + missing
    );
    client.write_all(&[head.as_bytes(), body].concat())
}

/// Reads what comes until the client closes.
fn wait_until_closed(client: &mut BufReader<&TcpStream>) -> io::Result<()> {
    io::copy(&mut client.by_ref(), &mut io::sink()).map(drop)
}
