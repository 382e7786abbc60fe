//! What is printed.

use std::time::Duration;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Otherwise it says so.
    Wish,
    /// Otherwise the benchmark fails.
    Must,
}

/// One figure.
#[derive(Default)]
pub(crate) struct Row {
    what: String,
    value: String,
    floor: String,
    ratio: String,
    aim: String,
    met: Option<bool>,
    must: bool,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>) -> Row {
        Row { what: what.into(), ..Row::default() }
    }

    pub(crate) fn value(self, value: impl Into<String>) -> Row {
        Row { value: value.into(), ..self }
    }

    pub(crate) fn floor(self, floor: impl Into<String>) -> Row {
        Row { floor: floor.into(), ..self }
    }

    pub(crate) fn ratio(self, value: Duration, floor: Duration) -> Row {
        let ratio = value.as_secs_f64() / floor.as_secs_f64();
        Row { ratio: format!("{ratio:.2}"), ..self }
    }

    pub(crate) fn aim(self, aim: Aim, words: impl Into<String>, met: bool) -> Row {
        Row { aim: words.into(), met: Some(met), must: aim == Aim::Must, ..self }
    }

    fn cells(&self) -> [&str; 6] {
        let met = match self.met {
            Some(true) => "met",
            Some(false) if self.must => "FAILED",
            Some(false) => "not met",
            None => "",
        };
        [&self.what, &self.value, &self.floor, &self.ratio, &self.aim, met]
    }
}

/// All figures, and what has to be said about them.
pub(crate) struct Table {
    machine: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(machine: String) -> Table {
        Table { machine, rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Whether a figure that must be is not.
    pub(crate) fn must_be_failed(&self) -> bool {
        self.rows.iter().any(|row| row.must && row.met == Some(false))
    }

    pub(crate) fn print(&self) {
        let head = ["", "value", "floor", "ratio", "aim", ""];
        let lines: Vec<[&str; 6]> =
            std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| {
            lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        println!("\nMachine: {}\n", self.machine);
        for cells in &lines {
            let cells: Vec<String> = std::iter::zip(cells, widths)
                .enumerate()
                .map(|(column, (cell, width))| match column {
                    1..=3 => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                })
                .collect();
            println!("{}", cells.join("  ").trim_end());
        }
        println!();
        for note in &self.notes {
            println!("- {note}");
        }
    }
}

pub(crate) fn milliseconds(span: Duration) -> String {
    let milliseconds = span.as_secs_f64() * 1000.0;
    if milliseconds < 1000.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{:.2} s", milliseconds / 1000.0)
    }
}
