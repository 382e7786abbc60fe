//! What is printed.

use std::time::Duration;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Otherwise it says so.
    Wish,
    /// Otherwise the benchmark fails.
    Must,
}

/// One figure.
#[derive(Default)]
pub struct Row {
    what: String,
    value: String,
    floor: String,
    ratio: String,
    aim: String,
    met: Option<bool>,
    must: bool,
}

impl Row {
    /// A row that says what it shows.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Row {
        Row { what: what.into(), ..Row::default() }
    }

    /// The figure.
    #[must_use]
    pub fn value(self, value: impl Into<String>) -> Row {
        Row { value: value.into(), ..self }
    }

    /// What it is measured against.
    #[must_use]
    pub fn floor(self, floor: impl Into<String>) -> Row {
        Row { floor: floor.into(), ..self }
    }

    /// The figure in parts of the floor.
    #[must_use]
    pub fn ratio(self, value: Duration, floor: Duration) -> Row {
        let ratio = value.as_secs_f64() / floor.as_secs_f64();
        Row { ratio: format!("{ratio:.2}"), ..self }
    }

    /// What the figure should be, and whether it is.
    #[must_use]
    pub fn aim(self, aim: Aim, words: impl Into<String>, met: bool) -> Row {
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
pub struct Table {
    peer: &'static str,
    machine: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    /// An empty one, from this machine, beside a floor.
    #[must_use]
    pub fn new(machine: String) -> Table {
        Table::beside("floor", machine)
    }

    /// An empty one, from this machine, beside something else than a floor.
    #[must_use]
    pub fn beside(peer: &'static str, machine: String) -> Table {
        Table { peer, machine, rows: Vec::new(), notes: Vec::new() }
    }

    /// One more row.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// One more thing that has to be said.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Whether a figure that must be is not.
    #[must_use]
    pub fn must_be_failed(&self) -> bool {
        self.rows.iter().any(|row| row.must && row.met == Some(false))
    }

    /// On standard output.
    pub fn print(&self) {
        let head = ["", "value", self.peer, "ratio", "aim", ""];
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

/// A span as people read it.
#[must_use]
pub fn milliseconds(span: Duration) -> String {
    let milliseconds = span.as_secs_f64() * 1000.0;
    if milliseconds < 1000.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{:.2} s", milliseconds / 1000.0)
    }
}
