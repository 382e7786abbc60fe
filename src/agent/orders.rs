//! What `run` and its guard tell each other: packets of a few numbers over a pair of sockets.
//!
//! The guard's end is its standard input, since that is the one descriptor that a new process can
//! be given without unsafe code. The command's own standard input travels with the first order, and
//! so do the variables that tell the command of its tenure.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::Pid,
};

use super::notice::Deadlines;
use crate::clock::Instant;

pub(super) const PACKET: usize = 25;

/// Of the first order with its variables: a key, a path, and little more.
const LONGEST_START: usize = 1 << 16;

/// What `run` tells the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Start the command; it has this grace when it is told to stop. First of all.
    Start { deadlines: Deadlines, grace: Duration },
    /// The deadlines have moved.
    Hold(Deadlines),
    /// Stop the command, and kill it at this instant at the latest.
    Stop { kill: Instant },
    /// Send the command's process group this signal.
    Signal(i32),
}

/// What the guard tells `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The command runs, as leader of the process group of this number.
    Started(Pid),
    /// It could not be started, for this reason. The guard ends.
    NotStarted(i32),
    /// A signal has stopped it, as a terminal's Ctrl-Z does.
    Stopped,
    /// Nothing is left of it; it ended so. The guard ends. `expired`: it had been told to stop before,
    /// since a deadline had passed.
    Ended { how: Ending, expired: bool },
    /// Nobody of the app is left who was to stop, since this many orders to stop were given.
    Clear { stops: u64 },
    /// The app has ended by itself; what may have been started in its place has to stop.
    AppEnded,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself, with this exit code.
    Code(u8),
    /// By a signal.
    Signal(u8),
}

/// A pair of connected sockets that keep packets apart, do not block, and are passed on to nobody.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// What the command is to find in its environment: names and values.
pub(super) type Variables = Vec<(String, String)>;

/// The first order, as it arrives.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) deadlines: Deadlines,
    pub(super) grace: Duration,
    pub(super) variables: Variables,
    /// The command's standard input.
    pub(super) stdin: OwnedFd,
}

/// Sends the first order, the command's variables, and its standard input.
///
/// # Errors
/// `BrokenPipe` if the guard is gone.
pub(super) fn send_start(
    socket: impl AsFd,
    order: Order,
    variables: &Variables,
    stdin: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [stdin];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let packet = order.packet();
    // No value can hold a NUL, since no variable can.
    let text: String = variables.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
    if PACKET + text.len() > LONGEST_START {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let payload = [IoSlice::new(&packet), IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(socket, &payload, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for the first order. `None`: the other side has ended without one.
pub(super) fn receive_start(socket: impl AsFd) -> io::Result<Option<Start>> {
    let mut watched = [PollFd::new(&socket, PollFlags::IN)];
    while poll(&mut watched, None) == Err(Errno::INTR) {}
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (mut packet, mut text) = ([0; PACKET], vec![0; LONGEST_START - PACKET]);
    let mut payload = [IoSliceMut::new(&mut packet), IoSliceMut::new(&mut text)];
    let received =
        rustix::net::recvmsg(socket, &mut payload, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let stdin = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    text.truncate(received.bytes.saturating_sub(PACKET));
    let text = String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData)?;
    let named = text.split_terminator('\0').map(|variable| {
        variable.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    });
    let start = || {
        let Order::Start { deadlines, grace } = Order::read(&packet)? else { return None };
        Some(Start { deadlines, grace, variables: named.collect::<Option<_>>()?, stdin: stdin? })
    };
    start().map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Sends a packet. Whoever is gone does not hear it, and is not missed here.
pub(super) fn send(socket: impl AsFd, packet: [u8; PACKET]) {
    let _ = rustix::net::send(socket, &packet, SendFlags::NOSIGNAL);
}

/// What was in the socket.
pub(super) enum Received {
    Packet([u8; PACKET]),
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    End,
}

/// Takes one packet, without waiting.
pub(super) fn receive(socket: impl AsFd) -> Received {
    let mut packet = [0; PACKET];
    match rustix::net::recv(socket, &mut packet[..], RecvFlags::DONTWAIT) {
        Ok((_, PACKET)) => Received::Packet(packet),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Ok(_) | Err(_) => Received::End,
    }
}

impl Order {
    pub(super) fn packet(self) -> [u8; PACKET] {
        match self {
            Order::Start { deadlines: Deadlines { term, kill }, grace } => {
                packet(b's', [nanos(term.since_boot()), nanos(kill.since_boot()), nanos(grace)])
            }
            Order::Hold(Deadlines { term, kill }) => {
                packet(b'h', [nanos(term.since_boot()), nanos(kill.since_boot()), 0])
            }
            Order::Stop { kill } => packet(b'x', [nanos(kill.since_boot()), 0, 0]),
            Order::Signal(number) => packet(b'k', [number.unsigned_abs().into(), 0, 0]),
        }
    }

    pub(super) fn read(packet: &[u8; PACKET]) -> Option<Order> {
        let (kind, [a, b, c]) = numbers(packet);
        let deadlines = || Deadlines { term: instant(a), kill: instant(b) };
        Some(match kind {
            b's' => Order::Start { deadlines: deadlines(), grace: Duration::from_nanos(c) },
            b'h' => Order::Hold(deadlines()),
            b'x' => Order::Stop { kill: instant(a) },
            b'k' => Order::Signal(i32::try_from(a).ok()?),
            _ => return None,
        })
    }
}

impl Report {
    pub(super) fn packet(self) -> [u8; PACKET] {
        let (kind, number, expired) = match self {
            Report::Started(pid) => (b'r', pid.as_raw_nonzero().get().unsigned_abs().into(), false),
            Report::NotStarted(errno) => (b'n', errno.unsigned_abs().into(), false),
            Report::Stopped => (b't', 0, false),
            Report::Clear { stops } => (b'c', stops, false),
            Report::AppEnded => (b'a', 0, false),
            Report::Ended { how: Ending::Code(code), expired } => (b'e', code.into(), expired),
            Report::Ended { how: Ending::Signal(number), expired } => {
                (b'd', number.into(), expired)
            }
        };
        packet(kind, [number, expired.into(), 0])
    }

    pub(super) fn read(packet: &[u8; PACKET]) -> Option<Report> {
        let (kind, [number, expired, _]) = numbers(packet);
        let (small, expired) = (u8::try_from(number).ok(), expired != 0);
        Some(match kind {
            b'r' => Report::Started(Pid::from_raw(i32::try_from(number).ok()?)?),
            b'n' => Report::NotStarted(i32::try_from(number).ok()?),
            b't' => Report::Stopped,
            b'c' => Report::Clear { stops: number },
            b'a' => Report::AppEnded,
            b'e' => Report::Ended { how: Ending::Code(small?), expired },
            b'd' => Report::Ended { how: Ending::Signal(small?), expired },
            _ => return None,
        })
    }
}

/// Nanoseconds; 584 years are enough for both.
fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn instant(nanos: u64) -> Instant {
    Instant::from_boot(Duration::from_nanos(nanos))
}

fn packet(kind: u8, numbers: [u64; 3]) -> [u8; PACKET] {
    let mut packet = [kind; PACKET];
    for (bytes, number) in packet[1..].chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    packet
}

fn numbers(packet: &[u8; PACKET]) -> (u8, [u64; 3]) {
    let mut numbers = [0; 3];
    for (number, bytes) in numbers.iter_mut().zip(packet[1..].chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        *number = u64::from_le_bytes(eight);
    }
    (packet[0], numbers)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    const DEADLINES: Deadlines = Deadlines {
        term: Instant::from_boot(Duration::from_millis(90_001)),
        kill: Instant::from_boot(Duration::from_nanos(95_000_000_001)),
    };

    #[test]
    fn orders_and_reports_arrive_as_they_were_sent() {
        let grace = Duration::from_millis(5);
        for order in [
            Order::Start { deadlines: DEADLINES, grace },
            Order::Hold(DEADLINES),
            Order::Stop { kill: DEADLINES.kill },
            Order::Signal(15),
        ] {
            assert_eq!(Order::read(&order.packet()), Some(order));
        }
        for report in [
            Report::Started(Pid::INIT),
            Report::NotStarted(2),
            Report::Stopped,
            Report::Clear { stops: 7 },
            Report::AppEnded,
            Report::Ended { how: Ending::Code(255), expired: false },
            Report::Ended { how: Ending::Signal(9), expired: true },
        ] {
            assert_eq!(Report::read(&report.packet()), Some(report));
        }
    }

    #[test]
    fn first_order_brings_variables_and_the_standard_input_along() {
        let (ours, guards) = pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let order = Order::Start { deadlines: DEADLINES, grace: Duration::ZERO };
        let variables = [("KEY", "a=b/ü\n"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        send_start(&ours, order, &variables, reader.as_fd()).unwrap();
        drop(reader);
        let start = receive_start(&guards).unwrap().unwrap();
        assert_eq!((start.deadlines, start.grace), (DEADLINES, Duration::ZERO));
        assert_eq!(start.variables, variables);
        writer.write_all(b"hello").unwrap();
        drop(writer);
        let mut text = String::new();
        io::PipeReader::from(start.stdin).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn end_without_a_first_order_is_none_and_no_error() {
        let (ours, guards) = pair().unwrap();
        drop(ours);
        assert!(receive_start(&guards).unwrap().is_none());
    }

    #[test]
    fn first_order_to_a_guard_that_is_gone_is_a_broken_pipe() {
        let (ours, guards) = pair().unwrap();
        drop(guards);
        let order = Order::Start { deadlines: DEADLINES, grace: Duration::ZERO };
        let sent = send_start(&ours, order, &Vec::new(), io::stdin().as_fd());
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nothing_yet_and_the_end_are_told_apart() {
        let (ours, guards) = pair().unwrap();
        assert!(matches!(receive(&guards), Received::Nothing));
        send(&ours, Order::Signal(1).packet());
        drop(ours);
        assert!(
            matches!(receive(&guards), Received::Packet(_)),
            "what was sent before is not lost"
        );
        assert!(matches!(receive(&guards), Received::End));
    }
}
