//! `hubllama doctor`: checks the build, the machine, the configuration, and the servers that it names.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, sync::Arc, time::Instant};

use super::client::Daemon;
use crate::{
    config::{self, Config, ConfigInputs, HubConfig},
    library::Library,
    provider::{CallContext, Ollama},
    stdx::{fs::free_bytes, size::human_bytes},
    worker::build_report,
};

pub(super) async fn run(inputs: &ConfigInputs) -> anyhow::Result<ExitCode> {
    let mut problems_found = 0;
    let mut row = |good: bool, what: &str, text: String| {
        problems_found += u32::from(!good);
        println!("{} {what:12} {text}", if good { " " } else { "!" });
    };
    row(true, "version", format!("hubllama {}", env!("CARGO_PKG_VERSION")));
    let build = build_report();
    row(true, "engine", build.engine);
    row(true, "cpu", build.cpu_features);
    let backends = if build.gpu_backends.is_empty() {
        "none".into()
    } else {
        build.gpu_backends.join(", ")
    };
    row(true, "gpu build", backends);
    for device in &build.devices {
        let memory = format!(
            "{} of {} free",
            human_bytes(device.free_bytes),
            human_bytes(device.total_bytes)
        );
        row(
            true,
            "device",
            format!("{}: {}, {memory}", device.name, device.description.trim()),
        );
    }
    if build.gpu_backends.is_empty() && !build.machine_gpus.is_empty() {
        let text = format!(
            "a GPU is present ({}) but this build has no support for it: build with --features cuda, rocm or vulkan",
            build.machine_gpus.join(", ")
        );
        row(false, "gpu", text);
    }
    let loaded = match config::load(inputs) {
        Ok(loaded) => loaded,
        Err(problems) => {
            // All further checks need a configuration.
            row(false, "config", format!("{problems}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    let config = loaded.config;
    let file = loaded.path.map_or("none".into(), |path| path.display().to_string());
    row(true, "config", file);
    for (what, path) in [("state", &config.state_dir), ("cache", &config.hub.cache_dir)] {
        let space = free_bytes(existing(path)).map_or("unknown space".into(), human_bytes);
        let writable = is_writable(existing(path));
        let note = if writable { "" } else { ", not writable by this user" };
        row(writable, what, format!("{} ({space} free{note})", path.display()));
    }
    match Daemon::find(&config).await? {
        Some(daemon) => row(true, "daemon", format!("running at {}", daemon.base())),
        None => row(
            true,
            "daemon",
            format!("not running at {}", config.server.listen.join(", ")),
        ),
    }
    if config.ollama.enabled {
        let url = &config.ollama.url;
        let call = CallContext {
            config: Arc::new(config.clone()),
            arrived: Instant::now(),
        };
        match Ollama::new().reachable(&call).await {
            Ok(_) => row(true, "ollama", format!("{url} answers")),
            Err(error) => row(
                false,
                "ollama",
                format!("{url} does not answer ({error}); requests for plain names will fail with 502"),
            ),
        }
    }
    if config.hub.enabled {
        hub_rows(&config, &mut row).await;
    }
    println!();
    match problems_found {
        0 => println!("No problems found."),
        1 => println!("1 problem found; see the line marked with !"),
        _ => println!("{problems_found} problems found; see the lines marked with !"),
    }
    Ok(if problems_found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints the rows about the Hub, its mirrors, the token and further caches.
async fn hub_rows(config: &Config, row: &mut impl FnMut(bool, &str, String)) {
    let endpoint = &config.hub.endpoint;
    let mut answer = None;
    if config.hub.offline {
        row(true, "hub", format!("{endpoint}, offline by configuration"));
    } else {
        let library = Library::new(&config.state_dir);
        match library.reachable(&config.hub).await {
            Ok(reachable) => {
                row(true, "hub", format!("{endpoint} answers"));
                answer = Some(reachable);
            }
            Err(error) => row(false, "hub", error.to_string()),
        }
        for mirror in &config.hub.mirrors {
            // The mirror becomes the endpoint, so that it is checked alone. It must not see the tokens.
            let alone = HubConfig {
                endpoint: mirror.clone(),
                mirrors: Vec::new(),
                token: None,
                organization_tokens: BTreeMap::new(),
                ..config.hub.clone()
            };
            match library.reachable(&alone).await {
                Ok(_) => row(true, "hub mirror", format!("{mirror} answers")),
                Err(error) => row(false, "hub mirror", error.to_string()),
            }
        }
    }
    match (&config.hub.token, answer) {
        (None, _) => row(true, "hub token", "none (only public repositories)".into()),
        (Some(_), Some(answer)) if answer.token_refused => {
            row(
                false,
                "hub token",
                "found, but the Hub refuses it: log in again with hf auth login".into(),
            );
        }
        (Some(_), answer) => match answer.and_then(|answer| answer.user) {
            Some(user) => row(true, "hub token", format!("found, belongs to {user}")),
            None => row(true, "hub token", "found".into()),
        },
    }
    for extra in &config.hub.extra_caches {
        match fs::read_dir(extra) {
            Ok(_) => row(true, "extra cache", extra.display().to_string()),
            Err(error) => row(
                false,
                "extra cache",
                format!("{} cannot be read: {error}", extra.display()),
            ),
        }
    }
}

/// Returns the nearest ancestor that exists, in which a new folder would be created.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok() && fs::metadata(path).is_ok_and(|meta| meta.is_dir())
}
