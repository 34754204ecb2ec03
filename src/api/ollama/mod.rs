//! Native dialect (`/api/*`), Ollama's own.
//!
//! Clients depend on more than the documented shapes: on the order in which Ollama checks a request (which decides the
//! error they see), on its error texts, and on fields that are left out when they are empty. Each route has its file;
//! `request` decodes the bodies of chat and generate, `frames` encodes their answers.

mod chat;
mod copy;
mod create;
mod delete;
mod destination;
mod details;
mod embed;
mod frames;
mod generate;
mod ps;
mod pull;
mod request;
mod show;
mod tags;
#[cfg(test)]
mod tests;
mod tokenize;
mod version;

pub(crate) use chat::{chat, check as check_chat};
pub(crate) use copy::copy;
pub(crate) use create::create;
pub(crate) use delete::delete;
pub(crate) use embed::{check_embed, check_embeddings, embed, embeddings};
pub(crate) use generate::{check as check_generate, generate};
pub(crate) use ps::ps;
pub(crate) use pull::pull;
pub(crate) use show::show;
pub(crate) use tags::tags;
pub(crate) use tokenize::{apply_template, detokenize, tokenize};
pub(crate) use version::{root, version};
