//! Tables and JSON on standard output.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::time::Timestamp;

/// Prints one JSON value, indented, and a newline.
pub fn json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Prints one JSON value a line.
pub fn json_lines<T: Serialize>(values: &[T]) -> io::Result<()> {
    let mut text = String::new();
    for value in values {
        text.push_str(&serde_json::to_string(value)?);
        text.push('\n');
    }
    print(&text)
}

/// Unlike `print!`, no panic when nobody reads any more.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Rows of cells in aligned columns.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).into()] }
    }

    /// A table without headings.
    pub fn bare() -> Self {
        Self { rows: Vec::new() }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)).into());
    }

    pub fn render(&self) -> String {
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text without characters that would move the cursor or colour the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `1h 5m 3s`, to the second.
pub fn duration(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// `2026-11-22T05:15:42Z`.
pub fn time(ts: Timestamp) -> String {
    let since_epoch = Duration::from_nanos(ts.as_nanos());
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since_epoch).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_harmless() {
        let mut table = Table::new(["A", "LONG"]);
        table.row(["1234".into(), "x".into()]);
        table.row(["ä\u{1b}[2J".into(), "y".into()]);
        assert_eq!(table.render(), "A      LONG\n1234   x\nä\u{fffd}[2J  y\n");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(duration(3_903), "1h 5m 3s");
        assert_eq!(duration(0), "0s");
        let ts = Timestamp::from_secs_f64(1_795_324_542.25).expect("a time");
        assert_eq!(time(ts), "2026-11-22T05:15:42Z");
    }
}
