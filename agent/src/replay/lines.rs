//! Transactions out of JSON Lines.

use std::io::{self, BufRead, Read};

use crate::transaction::Transaction;

/// Longest line in bytes. Two excerpts of 16 KiB and full header fields need far less.
pub const MAX_LINE: usize = 1024 * 1024;

/// A line of an input.
pub(super) enum Line {
    Transaction(Box<Transaction>),
    Blank,
    /// Why it can't be read; holds no value from the line.
    Unreadable(String),
}

/// Reads lines one by one into one buffer of at most [`MAX_LINE`] bytes.
pub(super) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, buffer: Vec::new() }
    }

    /// The next line; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        self.buffer.clear();
        let mut whole = Read::by_ref(&mut self.input).take(MAX_LINE as u64 + 1);
        if whole.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(None);
        }
        if self.buffer.last() != Some(&b'\n') && self.buffer.len() > MAX_LINE {
            self.skip_line()?;
            return Ok(Some(Line::Unreadable(format!("it is longer than {MAX_LINE} bytes"))));
        }
        let text = self.buffer.trim_ascii();
        if text.is_empty() {
            return Ok(Some(Line::Blank));
        }
        Ok(Some(match read(text) {
            Ok(tx) => Line::Transaction(Box::new(tx)),
            Err(why) => Line::Unreadable(why),
        }))
    }

    /// Reads on to the end of the line without keeping it.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let rest = self.input.fill_buf()?;
            let end = rest.iter().position(|byte| *byte == b'\n');
            let skip = end.map_or(rest.len(), |at| at + 1);
            if skip == 0 {
                return Ok(());
            }
            self.input.consume(skip);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

fn read(text: &[u8]) -> Result<Transaction, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let tx = serde_path_to_error::deserialize(&mut json).map_err(|error| explain(&error))?;
    json.end().map_err(|error| explain_json(&error))?;
    Ok(tx)
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let what = explain_json(error.inner());
    // "?" is a place that ended before it had a name.
    if path == "." || path == "?" { what } else { format!("`{path}`: {what}") }
}

/// What is wrong, without the value: serde_json's own message quotes it, and it may be personal.
fn explain_json(error: &serde_json::Error) -> String {
    let message = error.to_string();
    // The position is at the end; a value may hold the same words.
    let message = message.rsplit_once(" at line ").map_or(&*message, |(before, _)| before);
    let column = error.column();
    match error.classify() {
        serde_json::error::Category::Data => {
            if message.starts_with("missing field") {
                message.to_owned()
            } else if let Some((_, expected)) = message.rsplit_once(", expected ") {
                format!("column {column} holds something else than {expected}")
            } else {
                format!("the value at column {column} is not a valid one")
            }
        }
        serde_json::error::Category::Eof => "the line ends in the middle of a value".to_owned(),
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => {
            format!("no JSON at column {column}: {message}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: impl Into<Vec<u8>>) -> Vec<Result<Option<String>, String>> {
        let text = text.into();
        let mut lines = Lines::new(&text[..]);
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push(match line {
                Line::Transaction(tx) => Ok(Some(tx.path)),
                Line::Blank => Ok(None),
                Line::Unreadable(why) => Err(why),
            });
        }
        all
    }

    const GOOD: &str = r#"{"ts":1700000000.5,"src":"192.0.2.1","method":"GET","path":"/a","x":1}"#;

    #[test]
    fn lines_end_with_or_without_a_newline() {
        let text = format!("{GOOD}\r\n\n  \n{GOOD}");
        let good = || Ok(Some("/a".to_owned()));
        assert_eq!(lines(text), [good(), Ok(None), Ok(None), good()]);
        assert_eq!(lines(""), []);
    }

    #[test]
    fn the_fingerprint_is_read_and_optional() {
        let with = GOOD.replace("\"x\":1", "\"ja4\":\"t13d1516h2_8daaf6152771_e5627efa2ab1\"");
        let ja4 = |line: &str| read(line.as_bytes()).unwrap().ja4;
        assert_eq!(ja4(&with).as_deref(), Some("t13d1516h2_8daaf6152771_e5627efa2ab1"));
        assert_eq!(ja4(GOOD), None);
        let written = serde_json::to_string(&read(with.as_bytes()).unwrap()).unwrap();
        assert_eq!(read(written.as_bytes()), read(with.as_bytes()));
    }

    #[test]
    fn calls_of_grpc_over_http_2_are_read() {
        let call = GOOD.replace("\"x\":1", "\"proto\":\"h2\",\"grpc_status\":16");
        let tx = read(call.as_bytes()).unwrap();
        assert_eq!((tx.proto.as_str(), tx.grpc_status), ("h2", Some(16)));
        let written = serde_json::to_string(&tx).unwrap();
        assert_eq!(read(written.as_bytes()), Ok(tx));
    }

    #[test]
    fn bad_lines_are_explained_without_their_values() {
        for (line, why) in [
            ("{\"ts\":1}", "missing field `src`"),
            (
                &GOOD.replace("\"GET\"", "7"),
                "`method`: column 47 holds something else than a string",
            ),
            (
                &GOOD.replace("192.0.2.1", "alice"),
                "`src`: the value at column 32 is not a valid one",
            ),
            (&GOOD.replace("1700000000.5", "-5"), "`ts`: the value at column 8 is not a valid one"),
            (
                &GOOD.replace("\"x\":1", "\"status\":\"alice\""),
                "`status`: column 80 holds something else than u16",
            ),
            (
                &GOOD.replace("\"x\":1", "\"status\":\"a, expected b at line c\""),
                "`status`: column 98 holds something else than u16",
            ),
            (&GOOD[..20], "the line ends in the middle of a value"),
            ("alice", "no JSON at column 1: expected value"),
            ("\u{feff}", "no JSON at column 1: expected value"),
        ] {
            assert_eq!(lines(line), [Err(why.to_owned())], "{line}");
        }
        let twice = lines(format!("{GOOD} {GOOD}"));
        assert!(matches!(&twice[..], [Err(why)] if why.contains("trailing characters")));
        let [Err(why)] = &lines([b"{\"ts\":\"", &[0xff, 0xfe][..], b"\"}"].concat())[..] else {
            panic!("bytes that are no UTF-8 are no JSON");
        };
        assert!(!why.is_empty());
    }

    #[test]
    fn long_lines_are_skipped_and_the_rest_goes_on() {
        let long = |extra: usize| {
            let pad = MAX_LINE - GOOD.len() + extra;
            GOOD.replace("\"x\":1", &format!("\"x\":1{}", " ".repeat(pad)))
        };
        let too_long = || Err(format!("it is longer than {MAX_LINE} bytes"));
        let good = || Ok(Some("/a".to_owned()));
        assert_eq!(lines(format!("{}\n{GOOD}", long(0))), [good(), good()]);
        assert_eq!(lines(format!("{}\n{GOOD}", long(1))), [too_long(), good()]);
        assert_eq!(lines(format!("{}\n{GOOD}", long(3_000_000))), [too_long(), good()]);
        assert_eq!(lines(long(1)), [too_long()]);
    }
}
