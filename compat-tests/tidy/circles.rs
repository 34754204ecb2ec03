//! No circle of imports between files of different concepts.
//!
//! A folder is one concept with its own parts: a file may use what the `mod.rs` above it defines, and the `mod.rs` uses
//! its files. Apart from that a chain of imports never leads back to the file where it began, so that every file can be
//! understood after the files that it uses. A name that a `mod.rs` only passes on counts for the file that defines it.

use std::collections::BTreeSet;

use super::{
    assert_none,
    paths::Tree,
    source::{Source, sources},
};

/// Imports that may close a circle: from, to, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// An import of one file by another, with the items that are used.
struct Edge {
    from: usize,
    to: usize,
    items: Vec<String>,
}

/// True when `file` is below the folder of the `mod.rs` or `name.rs` that `ancestor` is.
fn is_below(file: &Source, ancestor: &Source) -> bool {
    file.module.len() > ancestor.module.len() && file.module.starts_with(&ancestor.module)
}

fn edges(sources: &[Source]) -> Vec<Edge> {
    let tree = Tree::new(sources);
    let mut edges: Vec<Edge> = Vec::new();
    for (from, source) in sources.iter().enumerate() {
        for used in tree.uses(from) {
            if is_below(source, &sources[used.file]) {
                continue;
            }
            match edges.iter_mut().find(|edge| (edge.from, edge.to) == (from, used.file)) {
                Some(edge) => edge.items.push(used.item),
                None => edges.push(Edge {
                    from,
                    to: used.file,
                    items: vec![used.item],
                }),
            }
        }
    }
    edges
}

/// The files that can be reached from each file.
fn reachable(edges: &[Edge], count: usize) -> Vec<BTreeSet<usize>> {
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
    for edge in edges {
        next[edge.from].push(edge.to);
    }
    let from = |start: usize| {
        let mut seen = BTreeSet::new();
        let mut open = next[start].clone();
        while let Some(file) = open.pop() {
            if seen.insert(file) {
                open.extend(&next[file]);
            }
        }
        seen
    };
    (0..count).map(from).collect()
}

#[test]
fn files_form_no_circle() {
    let sources = sources();
    let mut edges = edges(&sources);
    assert!(edges.len() > 500, "only {} imports were understood", edges.len());
    let is_exception = |edge: &Edge| {
        let (from, to) = (sources[edge.from].name(), sources[edge.to].name());
        EXCEPTIONS
            .iter()
            .any(|(a, b, _)| (*a, *b) == (from.as_str(), to.as_str()))
    };
    let exceptions = edges.iter().filter(|edge| is_exception(edge)).count();
    assert_eq!(exceptions, EXCEPTIONS.len(), "an exception that nothing needs");
    edges.retain(|edge| !is_exception(edge));
    let reachable = reachable(&edges, sources.len());
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (start, after) in reachable.iter().enumerate() {
        if !after.contains(&start) || told.contains(&start) {
            continue;
        }
        let circle: BTreeSet<usize> = after
            .iter()
            .copied()
            .filter(|file| reachable[*file].contains(&start))
            .collect();
        let names: Vec<String> = circle.iter().map(|file| sources[*file].name()).collect();
        found.push(format!("circle of {}:", names.join(", ")));
        for edge in edges
            .iter()
            .filter(|edge| circle.contains(&edge.from) && circle.contains(&edge.to))
        {
            let (from, to) = (sources[edge.from].name(), sources[edge.to].name());
            found.push(format!("    {from} uses {to}: {}", edge.items.join(", ")));
        }
        told.extend(circle);
    }
    assert_none(&found);
}
