//! What can be typed. Types only; nothing happens here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::TypedValueParser as _};

use crate::{config::ConfigInputs, convert::FAMILIES, inference::WeightType};

/// Makes every existing Ollama client speak Hugging Face.
///
/// hubllama listens on a port of its own (11435) and speaks the Ollama, OpenAI and Anthropic APIs. A plain model name goes, byte
/// for byte, to the Ollama beside it; a name that begins with hf: is served from the Hugging Face Hub by hubllama
/// itself. Point a client at the port and use hf:ORG/REPO or hf:ORG/REPO:Q4_K_M as a model name.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Settings come from the command line, the environment (HUBLLAMA_*, HF_*, OLLAMA_*), the \
                        configuration file and defaults, in this order. `hubllama config check` shows all of them."
)]
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
    /// Run the daemon (this is what happens without a command)
    Serve(ServeArguments),
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Download a model, through the running daemon where there is one
    Pull {
        /// As hf:ORG/REPO, hf:ORG/REPO:Q4_K_M or hf:ORG/REPO@REVISION:FILE.gguf
        name: String,
    },
    /// List models, through the running daemon where there is one
    #[command(visible_alias = "ls")]
    List,
    /// Say what a model is and where it is from
    Show {
        /// As `hubllama list` prints it
        name: String,
        /// Ask the Hub whether it has other files by now; downloads nothing
        #[arg(long)]
        updates: bool,
    },
    /// Remove a model; files of other programs stay, and are only not listed any more
    Rm {
        /// As `hubllama list` prints it
        name: String,
        /// Remove the files too that another program put into the cache
        #[arg(long)]
        files: bool,
    },
    /// Look for models on the Hub: quantisations, sizes, licences, and whether they fit this machine
    Search {
        /// Words of a repository's name
        #[arg(required = true)]
        words: Vec<String>,
        /// Repositories to show
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100).map(usize::from))]
        limit: usize,
    },
    /// Hash the files of models again, of all without a name
    Verify {
        /// As `hubllama list` prints them
        names: Vec<String>,
    },
    /// Show what is of no use in the cache: broken-off downloads, superseded commits, unused content
    Prune {
        /// Remove it
        #[arg(long)]
        apply: bool,
    },
    /// Copy a GGUF file into the cache under a name of its own
    Import {
        /// The file; of several parts, the first
        file: PathBuf,
        /// As hf:ORG/REPO or hf:ORG/REPO:Q4_K_M
        #[arg(long = "as", value_name = "NAME")]
        name: String,
    },
    /// Make a GGUF file from a safetensors checkpoint; needs no daemon
    #[command(after_help = convertible())]
    Convert {
        /// The folder of a checkpoint, or hf:ORG/REPO where its files are in the cache
        checkpoint: String,
        /// Type of the weights: auto (as they are stored), F32, F16, BF16, Q8_0, Q4_K_M, Q6_K and others of llama.cpp
        #[arg(long = "type", value_name = "TYPE", default_value_t)]
        target: WeightType,
        /// Where to write [default: NAME-TYPE.gguf in this folder]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Convert also where the engine would cut texts into other tokens than the model learned with
        #[arg(long)]
        any_tokenizer: bool,
        /// Make the projector of a model that sees, the file that goes beside the model's
        #[arg(long)]
        mmproj: bool,
    },
    /// Show what a model's chat template makes of a conversation, and whether its repository has the same one
    Template(TemplateArguments),
    /// Say what this build and this machine can do, and what is wrong
    Doctor,
    /// Hold one model (started by the daemon)
    #[command(hide = true)]
    Worker {
        #[arg(long, value_enum)]
        role: Role,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Read and validate everything; print every value and where it comes from
    Check,
}

#[derive(Clone, Debug, Default, Args)]
pub(super) struct ServeArguments {
    // Not a doc comment: rustdoc would take the IPv6 address for a link.
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Where to listen: host:port or unix:/path, several with commas [default: 127.0.0.1:11435,[::1]:11435]"
    )]
    listen: Option<String>,
    /// Base URL of the Ollama that answers plain names [default: http://127.0.0.1:11434]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Log filter, as info or hubllama=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct TemplateArguments {
    /// A model in the cache, as hf:ORG/REPO:Q4_K_M, or the path of a GGUF file
    pub(super) name: String,
    /// Repository to compare with [default: the model's own, then the one that its file names as its base]
    #[arg(long, value_name = "ORG/REPO")]
    pub(super) against: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Role {
    Model,
    Helper,
    Converter,
}

impl Arguments {
    /// What the configuration is made from.
    pub(super) fn inputs(&self) -> ConfigInputs {
        let mut overrides = Vec::new();
        let after = match &self.command {
            Some(Command::Serve(serve)) => Some(serve),
            _ => None,
        };
        // What stands after the command is nearer than what stands before it.
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

/// What `convert` can convert.
fn convertible() -> String {
    format!(
        "Checkpoints of {}; also where their weights are fp8, and gpt-oss with MXFP4.",
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
