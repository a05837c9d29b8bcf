mod documents;
mod mistakes;
mod values;

use super::{Loaded, Purpose, parse};

/// What is wrong with `text`, a line each, without the file's name.
fn mistakes(text: &str) -> Vec<String> {
    match parse(text, "f", Purpose::Run) {
        Ok(_) => Vec::new(),
        Err(invalid) => lines(&invalid.to_string()),
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.strip_prefix("f:").unwrap_or(line).to_owned()).collect()
}

/// The configuration in `text`, to which an interface is added.
fn good(text: &str) -> Loaded {
    let text = format!("interfaces = [\"eth0\"]\n{text}");
    parse(&text, "f", Purpose::Run).unwrap_or_else(|invalid| panic!("{invalid}"))
}

fn warnings(text: &str) -> Vec<String> {
    good(text).warnings.iter().map(|warning| lines(&warning.to_string()).concat()).collect()
}
