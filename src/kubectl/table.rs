//! Tables as kubectl's: upper-case headings, three blanks between columns, no lines. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::screen::{Paint, Tone};

/// What stands where there is nothing.
const NONE: &str = "<none>";
/// Between columns.
const GAP: &str = "   ";

/// Rows of as many cells as there are headings.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Table {
    pub(super) fn new(head: &[&'static str]) -> Table {
        Table { head: head.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// As text, a line each, `indent` before every one.
    pub(super) fn render(&self, paint: Paint, indent: &str) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let cells = cells.map(|cell| cell.text.chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let head = self.head.iter().map(|&head| Cell::from(head)).collect();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let shown = paint.with(cell.tone, &cell.text);
                line.push_str(&shown);
                if column + 1 < row.len() {
                    let room = widths[column].saturating_sub(cell.text.chars().count());
                    let _ = write!(line, "{:room$}{GAP}", "");
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl Cell {
    pub(super) fn toned(text: impl AsRef<str>, tone: Tone) -> Cell {
        Cell { text: clean(text.as_ref()), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    /// Nothing but blanks becomes `<none>`, so that every row has as many words as columns.
    fn from(text: T) -> Cell {
        let text = text.as_ref();
        Cell::toned(if text.trim().is_empty() { NONE } else { text }, Tone::Plain)
    }
}

/// The text in one line and without what makes a terminal do something: others wrote it.
pub(super) fn clean(text: &str) -> String {
    // The last two ranges turn the direction of writing around.
    let odd =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !odd(*c)).collect()
}

/// How long ago, in kubectl's short form.
pub(super) fn age(since: Timestamp, now: Timestamp) -> String {
    short(now.as_second().saturating_sub(since.as_second()))
}

/// A span of seconds in kubectl's short form: two units where the first is small.
pub(super) fn short(seconds: i64) -> String {
    const M: i64 = 60;
    const H: i64 = 60 * M;
    const D: i64 = 24 * H;
    const Y: i64 = 365 * D;
    let two = |big: i64, unit: char, small: i64, lesser: char| {
        let (whole, rest) = (seconds / big, seconds % big / small);
        match rest {
            0 => format!("{whole}{unit}"),
            rest => format!("{whole}{unit}{rest}{lesser}"),
        }
    };
    match seconds {
        ..=0 => "0s".to_owned(),
        _ if seconds < 2 * M => format!("{seconds}s"),
        _ if seconds < 10 * M => two(M, 'm', 1, 's'),
        _ if seconds < 3 * H => format!("{}m", seconds / M),
        _ if seconds < 8 * H => two(H, 'h', M, 'm'),
        _ if seconds < 2 * D => format!("{}h", seconds / H),
        _ if seconds < 8 * D => two(D, 'd', H, 'h'),
        _ if seconds < 2 * Y => format!("{}d", seconds / D),
        _ if seconds < 8 * Y => two(Y, 'y', D, 'd'),
        _ => format!("{}y", seconds / Y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_is_none() {
        let mut table = Table::new(&["NAME", "TOKEN", "NEXT"]);
        table.row(vec!["a".into(), "1482".into(), "".into()]);
        table.row(vec!["billing-ä".into(), "7".into(), "b".into()]);
        let shown = "NAME        TOKEN   NEXT\n\
                     a           1482    <none>\n\
                     billing-ä   7       b\n";
        assert_eq!(table.render(Paint::PLAIN, ""), shown);
    }

    #[test]
    fn colour_takes_no_room() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec![Cell::toned("Held", Tone::Good), "x".into()]);
        let shown = table.render(Paint::COLOUR, "");
        assert_eq!(shown, "A      B\n\x1b[32mHeld\x1b[0m   x\n");
    }

    #[test]
    fn what_others_wrote_does_nothing_to_a_terminal() {
        let cell = Cell::from("\x1b[31mroot\u{202e}\r\nx\u{7}");
        assert_eq!(cell.text, "[31mrootx");
    }

    #[test]
    fn ages_are_short_as_kubectl_s() {
        for (seconds, shown) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (28_740, "7h59m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(short(seconds), shown, "{seconds}");
        }
    }
}
