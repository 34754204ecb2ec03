//! Arguments of the command line, as types for clap. The doc comments of commands and options are their help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::TypedValueParser as _};

use crate::{config::ConfigInputs, convert::FAMILIES, inference::WeightType};

/// Use models of the Hugging Face Hub from any Ollama client.
///
/// hubllama listens on port 11435 and speaks the Ollama, OpenAI and Anthropic APIs. A request for a model name that
/// begins with hf: is answered by hubllama itself, with weights from the Hugging Face Hub. A request for any other name
/// is forwarded to Ollama byte for byte. Point a client at the port and use a model name such as hf:ORG/REPO or
/// hf:ORG/REPO:Q4_K_M.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:\n  \
                  hubllama pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M\n  \
                  hubllama serve --listen 127.0.0.1:11435\n\n\
                  Settings are read from the command line, the environment (HUBLLAMA_*, HF_*, OLLAMA_*), the \
                  configuration file, and built-in defaults, in this order of precedence. `hubllama config check` \
                  prints all of them.")]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/hubllama/config.toml or ~/.config/hubllama/config.toml]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon (the default if no command is given)
    Serve(ServeArguments),
    /// Check the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Download a model, through the running daemon if there is one
    Pull {
        /// Model name, for example hf:ORG/REPO, hf:ORG/REPO:Q4_K_M or hf:ORG/REPO@REVISION:FILE.gguf
        name: String,
    },
    /// List models, through the running daemon if there is one
    #[command(visible_alias = "ls")]
    List,
    /// Show the details and the provenance of a model
    Show {
        /// Model name as printed by `hubllama list`
        name: String,
        /// Ask the Hub whether it has newer files, without downloading them
        #[arg(long)]
        updates: bool,
    },
    /// Remove a model; files that other programs downloaded are kept, but no longer listed
    Rm {
        /// Model name as printed by `hubllama list`
        name: String,
        /// Also remove files that another program downloaded
        #[arg(long)]
        files: bool,
    },
    /// Search for models on the Hub and show their quantizations, sizes, licenses, and whether they fit this machine
    Search {
        /// Words in the name of a repository
        #[arg(required = true)]
        words: Vec<String>,
        /// Number of repositories to show
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100).map(usize::from))]
        limit: usize,
    },
    /// Check the hashes of downloaded files
    Verify {
        /// Model names as printed by `hubllama list` [default: all models]
        names: Vec<String>,
    },
    /// List files in the cache that are no longer needed: partial downloads, superseded commits, unused content
    Prune {
        /// Remove the listed files
        #[arg(long)]
        apply: bool,
    },
    /// Copy a GGUF file into the cache under a model name
    Import {
        /// GGUF file; if it is split into several parts, the first one
        file: PathBuf,
        /// Model name, for example hf:ORG/REPO or hf:ORG/REPO:Q4_K_M
        #[arg(long = "as", value_name = "NAME")]
        name: String,
    },
    /// Convert a safetensors checkpoint to a GGUF file; needs no daemon
    #[command(after_help = convertible())]
    Convert {
        /// Folder of a checkpoint, or hf:ORG/REPO if its files are in the cache
        checkpoint: String,
        /// Type of the weights: stored (unchanged), F32, F16, BF16, Q8_0, Q4_K_M, Q6_K and others of llama.cpp
        #[arg(long = "type", value_name = "TYPE", default_value_t)]
        target: WeightType,
        /// Output file [default: NAME-TYPE.gguf in the current folder]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Convert even if llama.cpp tokenizes sample texts differently than the model's own tokenizer
        #[arg(long)]
        any_tokenizer: bool,
        /// Convert the projector of a vision model instead of its language model
        #[arg(long)]
        mmproj: bool,
    },
    /// Render sample conversations with a model's chat template and compare it with the repository's template
    Template(TemplateArguments),
    /// Check this build, this machine, the configuration and the servers, and report problems
    Doctor,
    /// Run a worker process (started by the daemon)
    #[command(hide = true)]
    Worker {
        #[arg(long, value_enum)]
        role: WorkerRoleArgument,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Validate the configuration and print every value with its source
    Check,
}

#[derive(Clone, Debug, Default, Args)]
pub(super) struct ServeArguments {
    // Not a doc comment: rustdoc would take the IPv6 address for a link.
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Listen addresses, host:port or unix:/path, separated by commas [default: 127.0.0.1:11435,[::1]:11435]"
    )]
    listen: Option<String>,
    /// Base URL of the Ollama server that plain names are forwarded to [default: http://127.0.0.1:11434]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Log filter, for example info or hubllama=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct TemplateArguments {
    /// Name of a model in the cache, for example hf:ORG/REPO:Q4_K_M, or path of a GGUF file
    pub(super) name: String,
    /// Repository to compare with [default: the model's own, or else that of its base model]
    #[arg(long, value_name = "ORG/REPO")]
    pub(super) against: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum WorkerRoleArgument {
    Model,
    Helper,
    Converter,
}

impl Arguments {
    /// Returns the inputs of the configuration: the path of its file, and the keys that options set.
    pub(super) fn inputs(&self) -> ConfigInputs {
        let mut overrides = Vec::new();
        let after = match &self.command {
            Some(Command::Serve(serve)) => Some(serve),
            _ => None,
        };
        // An option after the command wins over the same option before it.
        let mut add = |key: &str, pick: fn(&ServeArguments) -> &Option<String>| {
            if let Some(value) = after
                .and_then(|serve| pick(serve).clone())
                .or_else(|| pick(&self.serve).clone())
            {
                overrides.push((key.to_owned(), value));
            }
        };
        add("server.listen", |serve| &serve.listen);
        add("ollama.url", |serve| &serve.upstream);
        add("log.level", |serve| &serve.log);
        ConfigInputs::from_process(self.config.clone(), overrides)
    }
}

/// Returns the help text about supported checkpoints.
fn convertible() -> String {
    format!(
        "Supported architectures: {}. Weights may also be stored as fp8, and those of gpt-oss as MXFP4.\n\n\
         Example:\n  hubllama convert ./Llama-3.2-1B-Instruct --type Q4_K_M",
        FAMILIES.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_work_before_and_after_the_command() {
        for line in [
            ["hubllama", "--listen", "127.0.0.1:1", "serve"],
            ["hubllama", "serve", "--listen", "127.0.0.1:1"],
        ] {
            let arguments = Arguments::try_parse_from(line).expect("parses");
            assert_eq!(
                arguments.inputs().overrides,
                [("server.listen".to_owned(), "127.0.0.1:1".to_owned())]
            );
        }
    }
}
