//! As much of HTTP/1.1 as the test bed needs: one request to a plain server, and the framing of
//! messages that the proxy passes on.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a server may take for any one step of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longer heads and chunk sizes are not HTTP.
const LONGEST_LINE: u64 = 64 * 1024;

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body, chunks joined.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether the status is 2xx.
    #[must_use]
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Makes one request to a plain HTTP server and reads the whole answer. Gives up when the server
/// is silent for ten seconds.
///
/// # Errors
/// No connection, or no complete answer.
pub fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(&[head.as_bytes(), body].concat())?;

    let mut reader = BufReader::new(stream);
    let head = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.status().ok_or_else(|| malformed("status line"))?;
    let mut raw = Vec::new();
    head.reply_framing(method).copy(&mut reader, &mut Dechunked(&mut raw))?;
    Ok(Reply { status, body: raw })
}

/// The head of a request or a reply: its bytes and what matters of them.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) bytes: Vec<u8>,
    first_line: String,
    length: Option<u64>,
    chunked: bool,
    close: bool,
}

impl Head {
    /// Reads up to the empty line. `None`: the peer closed before it said anything.
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut head = Head {
            bytes: Vec::new(),
            first_line: String::new(),
            length: None,
            chunked: false,
            close: false,
        };
        loop {
            let line = read_line(reader)?;
            if line.is_empty() && head.bytes.is_empty() {
                return Ok(None);
            }
            head.bytes.extend_from_slice(&line);
            let text = String::from_utf8_lossy(&line);
            match text.trim_end() {
                "" if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                "" => return Ok(Some(head)),
                text if head.first_line.is_empty() => head.first_line = text.to_owned(),
                text => head.note(text)?,
            }
        }
    }

    fn note(&mut self, header: &str) -> io::Result<()> {
        let (name, value) = header.split_once(':').ok_or_else(|| malformed("header"))?;
        let value = value.trim().to_ascii_lowercase();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                self.length = Some(value.parse().map_err(|_| malformed("Content-Length"))?);
            }
            "transfer-encoding" => self.chunked = value.contains("chunked"),
            "connection" => self.close = value.contains("close"),
            _ => {}
        }
        Ok(())
    }

    /// The first and second word of a request's first line.
    pub(crate) fn method_and_path(&self) -> (&str, &str) {
        let mut words = self.first_line.split(' ');
        (words.next().unwrap_or(""), words.next().unwrap_or(""))
    }

    fn status(&self) -> Option<u16> {
        self.first_line.split(' ').nth(1)?.parse().ok()
    }

    /// Whether the sender closes the connection after this message.
    pub(crate) fn closes(&self) -> bool {
        self.close
    }

    /// Whether another head follows this one, for the same request (`100 Continue`).
    pub(crate) fn is_interim(&self) -> bool {
        self.status().is_some_and(|status| status < 200)
    }

    /// How the body of a request ends.
    pub(crate) fn request_framing(&self) -> Framing {
        match self.length {
            _ if self.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Length(0),
        }
    }

    /// How the body of a reply to `method` ends.
    pub(crate) fn reply_framing(&self, method: &str) -> Framing {
        match (self.status(), self.length) {
            _ if method == "HEAD" => Framing::Length(0),
            (Some(100..200 | 204 | 304), _) => Framing::Length(0),
            _ if self.chunked => Framing::Chunked,
            (_, Some(length)) => Framing::Length(length),
            (_, None) => Framing::UntilEnd,
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilEnd,
}

impl Framing {
    /// Copies a body as it is on the wire.
    pub(crate) fn copy(self, from: &mut impl BufRead, to: &mut impl Sink) -> io::Result<()> {
        match self {
            Framing::Length(length) => copy_exactly(from, to, length),
            Framing::UntilEnd => copy_until_end(from, to),
            Framing::Chunked => loop {
                let line = read_line(from)?;
                let size = chunk_size(&line)?;
                to.frame(&line)?;
                if size == 0 {
                    return copy_trailer(from, to);
                }
                copy_exactly(from, to, size)?;
                to.frame(&read_line(from)?)?;
            },
        }
    }
}

/// Where a body goes: its content, and what frames it.
pub(crate) trait Sink {
    fn content(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn frame(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Takes the body as it is on the wire.
impl<W: Write> Sink for W {
    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
}

/// Takes the content alone.
struct Dechunked<'a>(&'a mut Vec<u8>);

impl Sink for Dechunked<'_> {
    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn frame(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

fn copy_exactly(from: &mut impl BufRead, to: &mut impl Sink, mut left: u64) -> io::Result<()> {
    while left > 0 {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        to.content(&bytes[..count])?;
        from.consume(count);
        left -= count as u64;
    }
    Ok(())
}

fn copy_until_end(from: &mut impl BufRead, to: &mut impl Sink) -> io::Result<()> {
    loop {
        let bytes = from.fill_buf()?;
        let count = bytes.len();
        if count == 0 {
            return Ok(());
        }
        to.content(bytes)?;
        from.consume(count);
    }
}

fn copy_trailer(from: &mut impl BufRead, to: &mut impl Sink) -> io::Result<()> {
    loop {
        let line = read_line(from)?;
        to.frame(&line)?;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
    }
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(line);
    let digits = text.split(';').next().unwrap_or("").trim();
    u64::from_str_radix(digits, 16).map_err(|_| malformed("chunk size"))
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_copied_as_it_is_and_no_further() {
        let wire =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nnext";
        let mut reader = &wire[..];
        let head = Head::read(&mut reader).unwrap().unwrap();
        let mut copied = Vec::new();
        head.reply_framing("GET").copy(&mut reader, &mut copied).unwrap();
        assert_eq!((copied.as_slice(), reader), (&b"3\r\nabc\r\n0\r\n\r\n"[..], &b"next"[..]));
    }

    #[test]
    fn a_body_that_is_cut_short_is_an_error() {
        let mut reader = &b"ab"[..];
        let error = Framing::Length(3).copy(&mut reader, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn replies_without_a_body_have_none_whatever_their_length_says() {
        let mut reader = &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"[..];
        let head = Head::read(&mut reader).unwrap().unwrap();
        assert_eq!(head.reply_framing("HEAD"), Framing::Length(0));
        assert_eq!(head.reply_framing("GET"), Framing::Length(5));
    }
}
