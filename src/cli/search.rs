//! The command `search`: prints models on the Hub with their sizes, and whether they fit into the memory of this
//! machine.

use std::{fmt::Write as _, process::ExitCode};

use crate::{
    config::{self, ConfigInputs},
    hub::SearchHit,
    library::{Library, MemoryFit, total_memory},
    stdx::size::human_bytes,
};

pub(super) async fn search(inputs: &ConfigInputs, words: &[String], limit: usize) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let words = words.join(" ");
    let found = Library::new(&config.state_dir)
        .search(&config.hub, &words, limit)
        .await?;
    if found.is_empty() {
        eprintln!("no repository with GGUF files on the Hub matches \"{words}\"");
        return Ok(ExitCode::FAILURE);
    }
    print!("{}", screen(&found, total_memory()));
    Ok(ExitCode::SUCCESS)
}

fn screen(found: &[SearchHit], memory: u64) -> String {
    let mut text = String::new();
    for repo in found {
        let license = repo.license.as_deref().unwrap_or("no license given");
        let gated = if repo.gated { ", terms to accept" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "hf:{}  ({license}{gated}, {} downloads)",
            repo.repository, repo.downloads
        );
        if repo.models.is_empty() {
            let _ = writeln!(text, "  its files cannot be listed");
        }
        let width = repo
            .models
            .iter()
            .map(|(label, _)| label.chars().count())
            .max()
            .unwrap_or(0);
        for (label, bytes) in &repo.models {
            let verdict = verdict(MemoryFit::of(*bytes, memory));
            let _ = writeln!(text, "  {label:width$}  {:>9}  {verdict}", human_bytes(*bytes));
        }
    }
    // The texts come from the Hub. Control characters in them could rewrite the screen.
    text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}

/// Returns the text of the last column.
fn verdict(fit: MemoryFit) -> &'static str {
    match fit {
        MemoryFit::Fits => "fits",
        MemoryFit::Tight => "tight",
        MemoryFit::TooLarge => "too large for this machine's memory",
        MemoryFit::Unknown => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_says_what_fits() {
        let found = SearchHit {
            repository: "o/r".into(),
            downloads: 7,
            license: Some("mit".into()),
            gated: true,
            models: vec![
                ("Q4_K_M".into(), 4 << 30),
                ("Q8_0".into(), 8 << 30),
                ("F16".into(), 16 << 30),
            ],
        };
        let text = screen(&[found], 10 << 30);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "hf:o/r  (mit, terms to accept, 7 downloads)");
        assert!(
            lines[1].starts_with("  Q4_K_M  ") && lines[1].ends_with("fits"),
            "{text}"
        );
        assert!(lines[2].ends_with("tight"), "{text}");
        assert!(lines[3].ends_with("too large for this machine's memory"), "{text}");
        assert_eq!(verdict(MemoryFit::Unknown), "");
    }
}
