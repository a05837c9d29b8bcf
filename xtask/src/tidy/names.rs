//! A map's name is written once: a second copy is a lookup that fails at run time.

use proc_macro2::{Literal, TokenStream, TokenTree};

use super::Breach;
use super::source::Source;

const PREFIX: &str = "PC_";
const STRINGS: &str = "agent-common/src/names.rs";
/// The statics whose names the kernel sees.
const STATICS: &str = "agent-ebpf/src/maps.rs";

pub fn check(source: &Source) -> Vec<Breach> {
    if source.syntax().is_none() || [STRINGS, STATICS].contains(&source.path()) {
        return Vec::new();
    }
    let Ok(tokens) = source.text().parse::<TokenStream>() else { return Vec::new() };
    let mut lines = Vec::new();
    collect(tokens, &mut lines);
    let why = format!("the name of a map: use the constant in {STRINGS}");
    lines.into_iter().map(|line| source.breach(line, why.clone())).collect()
}

/// Lines of string literals that are a map's name, of any kind (`"…"`, `c"…"`, `r#"…"#`).
fn collect(tokens: TokenStream, lines: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Literal(literal) if is_map_name(&literal) => {
                lines.push(literal.span().start().line);
            }
            TokenTree::Group(group) => collect(group.stream(), lines),
            _ => {}
        }
    }
}

fn is_map_name(literal: &Literal) -> bool {
    let text = literal.to_string();
    let opened = text.trim_start_matches(['b', 'c', 'r', '#']);
    let name = opened.strip_prefix('"').and_then(|content| content.strip_prefix(PREFIX));
    name.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, code: &str) -> Vec<usize> {
        let source = Source::parse(path, code.to_owned()).expect("valid Rust");
        check(&source).into_iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn names_stand_in_their_own_file() {
        let code = "pub const DENY: &str = \"PC_DENY\";";
        assert_eq!(lines("agent-common/src/names.rs", code), [0; 0]);
        assert_eq!(lines("agent/src/kernel/maps.rs", code), [1]);
    }

    #[test]
    fn every_kind_of_literal_and_macros() {
        for code in ["f(c\"PC_DENY\")", "f(r#\"PC_DENY\"#)", "format!(\"{}\", \"PC_DENY\")"] {
            let code = format!("fn g() {{\n{code};\n}}");
            assert_eq!(lines("tests/tests/kernel.rs", &code), [2], "{code}");
        }
    }

    #[test]
    fn other_strings_are_fine() {
        assert_eq!(
            lines("agent/src/cli/mod.rs", "const A: &str = \"the map is PC_DENY\";"),
            [0; 0]
        );
    }
}
