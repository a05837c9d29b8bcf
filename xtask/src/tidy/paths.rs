//! No path of somebody's machine: the project builds anywhere.

use super::Breach;
use super::source::Source;

/// Beginnings of directories that only one machine has.
const MACHINES: [&str; 3] = ["/home/", "/root/.", "/Users/"];

pub fn check(source: &Source) -> Vec<Breach> {
    // This file has to name them.
    if source.path() == "xtask/src/tidy/paths.rs" {
        return Vec::new();
    }
    let lines = source.text().lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let path = MACHINES.iter().find(|path| has_path(line, path))?;
            let why =
                format!("`{path}…` is a path of one machine: derive it, or take it as an argument");
            Some(source.breach(index + 1, why))
        })
        .collect()
}

/// Whether an absolute path in `line` begins with `path`, as opposed to containing it.
fn has_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "_-./~}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        let source = Source::parse("README.md", text.to_owned()).expect("no Rust");
        check(&source).into_iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn paths_of_one_machine() {
        assert_eq!(lines("a\ncd /home/me/portcullis"), [2]);
        assert_eq!(lines("dir = \"/root/.cargo\""), [1]);
        assert_eq!(lines("at=/home/me"), [1]);
    }

    #[test]
    fn paths_of_every_machine() {
        assert_eq!(lines("/etc/portcullis/portcullis.toml and $HOME/.cache"), [0; 0]);
        assert_eq!(lines("target/home/a and ./home/b"), [0; 0]);
    }
}
