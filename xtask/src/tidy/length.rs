//! Files one can read in a sitting, functions one can see whole.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Breach;
use super::source::Source;

/// Lines of a Rust file.
const FILE: usize = 800;
/// Lines of a function, from its signature to its closing brace.
const FUNCTION: usize = 80;

pub fn check(source: &Source) -> Vec<Breach> {
    let Some(file) = source.syntax() else { return Vec::new() };
    let mut functions = Functions::default();
    functions.visit_file(file);
    let long = functions.found.into_iter().filter(|function| function.lines > FUNCTION);
    let mut breaches: Vec<Breach> = long
        .map(|function| {
            let Function { name, line, lines } = function;
            let why = format!(
                "`{name}` has {lines} lines, more than {FUNCTION}: split it by what it does"
            );
            source.breach(line, why)
        })
        .collect();
    let lines = source.text().lines().count();
    if lines > FILE {
        let why = format!(
            "the file has {lines} lines, more than {FILE}: give its second question a file"
        );
        breaches.push(source.breach(FILE + 1, why));
    }
    breaches
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

#[derive(Default)]
struct Functions {
    found: Vec<Function>,
}

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.span().start().line;
        let lines = block.span().end().line + 1 - line;
        self.found.push(Function { name: signature.ident.to_string(), line, lines });
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(code: String) -> Vec<Breach> {
        check(&Source::parse("a.rs", code).expect("valid Rust"))
    }

    fn function_of(lines: usize) -> String {
        format!(
            "/// Documentation\n/// does not count.\nfn f() {{\n{}}}\n",
            "a();\n".repeat(lines - 2)
        )
    }

    #[test]
    fn functions_at_and_over_the_limit() {
        assert_eq!(breaches(function_of(80)), []);
        let found = breaches(function_of(81));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 3, "where the signature is");
        assert!(found[0].why.contains("`f` has 81 lines"), "{}", found[0].why);
    }

    #[test]
    fn methods_count_too() {
        let method = format!("impl A {{\n{}}}\n", function_of(81));
        assert_eq!(breaches(method).len(), 1);
        let provided = format!("trait A {{\n{}}}\n", function_of(81));
        assert_eq!(breaches(provided).len(), 1);
    }

    #[test]
    fn files_at_and_over_the_limit() {
        assert_eq!(breaches("// a line\n".repeat(800)), []);
        assert_eq!(breaches("// a line\n".repeat(801)).len(), 1);
    }
}
