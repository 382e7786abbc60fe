//! What any packet between an agent, or a run, and its guard comes to, for `crate::fuzz`.

use super::orders::{Order, PACKET, Report};

/// Any packet; what is missing of it counts as zeros.
pub(crate) fn packet(input: &[u8]) {
    let mut packet = [0; PACKET];
    let length = input.len().min(PACKET);
    packet[..length].copy_from_slice(&input[..length]);
    let (order, report) = (Order::read(&packet), Report::read(&packet));
    assert!(order.is_none() || report.is_none(), "{order:?} or {report:?}");
    if let Some(order) = order {
        assert_eq!(Order::read(&order.packet()), Some(order));
        if let Order::Signal(number) = order {
            assert!(number >= 0, "a negative number is another process's");
        }
    }
    if let Some(report) = report {
        assert_eq!(Report::read(&report.packet()), Some(report));
    }
}
