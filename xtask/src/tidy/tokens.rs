//! Paths named by code, wherever they stand: in `use`, in expressions and types, in macros.

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A path as segments, `crate::a::b`, and the line it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    pub segments: Vec<String>,
    pub line: usize,
}

impl NamedPath {
    pub fn begins_with(&self, prefix: &[&str]) -> bool {
        self.segments.len() >= prefix.len()
            && prefix.iter().zip(&self.segments).all(|(a, b)| a == b)
    }
}

/// Every path in `file` outside of what is compiled for tests only.
pub fn paths(file: &syn::File) -> Vec<NamedPath> {
    let mut collector = Collector::default();
    collector.visit_file(file);
    collector.paths
}

/// Whether one of `attributes` is `#[cfg(test)]`.
pub fn is_cfg_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

pub fn item_attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[derive(Default)]
struct Collector {
    paths: Vec<NamedPath>,
}

impl Collector {
    fn add_use(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let with = |ident: &syn::Ident| {
            let mut segments = prefix.to_vec();
            // `use a::{self}` names `a`; `self::a` is about this module.
            if prefix.is_empty() || ident != "self" {
                segments.push(ident.to_string());
            }
            segments
        };
        let line = tree.span().start().line;
        match tree {
            syn::UseTree::Path(path) => self.add_use(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.push(with(&name.ident), line),
            syn::UseTree::Rename(rename) => self.push(with(&rename.ident), line),
            syn::UseTree::Glob(_) => self.push(prefix.to_vec(), line),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, prefix);
                }
            }
        }
    }

    fn push(&mut self, segments: Vec<String>, line: usize) {
        self.paths.push(NamedPath { segments, line });
    }

    /// A macro's arguments are not syntax yet: take `a::b::c` from the tokens.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Option<NamedPath> = None;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => match &mut path {
                    Some(path) if colons == 2 => path.segments.push(ident.to_string()),
                    _ => {
                        let line = ident.span().start().line;
                        let next = NamedPath { segments: vec![ident.to_string()], line };
                        self.paths.extend(path.replace(next));
                    }
                },
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                other => {
                    self.paths.extend(path.take());
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
            colons = 0;
        }
        self.paths.extend(path);
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_cfg_test(item_attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_cfg_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.push(segments, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        self.add_tokens(invocation.tokens.clone());
        visit::visit_macro(self, invocation);
    }

    /// `#[derive(serde::Serialize)]` and the like are declarations, not use of a room.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(code: &str) -> Vec<String> {
        let file = syn::parse_file(code).expect("valid Rust");
        paths(&file).iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn sees_grouped_renamed_and_glob_imports() {
        let code = "use crate::{a::{self, B as C}, d::*};";
        assert_eq!(shown(code), ["crate::a", "crate::a::B", "crate::d"]);
    }

    #[test]
    fn sees_expressions_types_and_macro_arguments() {
        let code = "fn f(x: crate::a::B) { crate::c::d(); log!(\"{}\", { crate::e::F::new() }); }";
        let shown = shown(code);
        for path in ["crate::a::B", "crate::c::d", "log", "crate::e::F::new"] {
            assert!(shown.iter().any(|shown| shown == path), "{path} not in {shown:?}");
        }
    }

    #[test]
    fn does_not_look_into_tests() {
        assert_eq!(shown("#[cfg(test)] mod tests { use std::fs; }"), [""; 0]);
        assert_eq!(shown("#[cfg(not(test))] use std::fs;"), ["std::fs"]);
    }

    #[test]
    fn a_field_with_a_type_is_not_a_path() {
        assert!(!shown("m!(a: b);").contains(&"a::b".to_owned()));
    }
}
