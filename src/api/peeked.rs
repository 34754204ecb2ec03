//! What the body of a request says about who is to answer it, found without parsing it.

use std::io::{self, BufReader, Read};

use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    http::request::Parts,
};

use super::{Endpoint, error::ApiError, multipart};
use crate::http::{
    peek::{self, Members, PeekError},
    spool::Spooled,
    zstd::{Decoder, ZstdError},
};

/// Body of a request that is parsed here. Only forwarded ones may be larger: they need not fit in memory.
const MAX_PARSED_BYTES: u64 = 256 << 20;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Peeked {
    /// The names that decide, in the order in which they do; none if the body cannot be read or names nobody.
    pub(crate) names: Vec<String>,
    /// Whether the body asks for something that Ollama's own reading of this route leaves out.
    pub(crate) asks_more: bool,
    /// How its bytes are to be read.
    pub(crate) coding: Coding,
}

/// How the bytes of a body are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Coding {
    /// They are the text.
    #[default]
    Identity,
    /// Compressed.
    Zstd,
}

/// Looks through a body. An error is one of this machine, never of the body: what cannot be read is nobody's.
pub(crate) async fn peek(spooled: &Spooled, endpoint: &Endpoint, parts: &Parts) -> Result<Peeked, ApiError> {
    if *endpoint == Endpoint::OpenAiTranscriptions {
        let names = name_in_form(spooled, parts).await?.into_iter().collect();
        return Ok(Peeked {
            names,
            ..Peeked::default()
        });
    }
    let coding = Coding::of(endpoint, parts);
    let members = match (coding, spooled.in_memory()) {
        (Coding::Identity, Some(bytes)) => peek::scan_slice(bytes),
        (Coding::Identity, None) => {
            let reader = spooled.reader();
            blocking(move || peek::scan(reader)).await?
        }
        (Coding::Zstd, _) => {
            let reader = Decoder::new(BufReader::new(spooled.reader()));
            blocking(move || peek::scan(reader)).await?
        }
    };
    match members {
        Ok(members) => Ok(Peeked {
            asks_more: asks_more(endpoint, &members),
            names: deciding(endpoint, members),
            coding,
        }),
        Err(PeekError::Read(error)) if ZstdError::of(&error).is_none() => Err(unreadable(&error)),
        Err(PeekError::NotAnObject | PeekError::Read(_)) => Ok(Peeked {
            coding,
            ..Peeked::default()
        }),
    }
}

/// The text of a body, in memory.
pub(crate) async fn text(spooled: &Spooled, coding: Coding) -> Result<Bytes, ApiError> {
    let reader = spooled.reader();
    match (coding, spooled.in_memory()) {
        (Coding::Identity, Some(bytes)) => Ok(bytes.clone()),
        (Coding::Identity, None) if spooled.len() > MAX_PARSED_BYTES => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {MAX_PARSED_BYTES} bytes; send fewer or smaller images"),
        )),
        (Coding::Identity, None) => blocking(move || read_all(reader)).await?,
        (Coding::Zstd, _) => blocking(move || read_all(Decoder::new(BufReader::new(reader)))).await?,
    }
}

fn read_all(mut reader: impl Read) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    match reader.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes.into()),
        Err(error) => Err(match ZstdError::of(&error) {
            Some(reason) => ApiError::bad_request(reason.to_string()),
            None => unreadable(&error),
        }),
    }
}

impl Coding {
    /// Ollama unpacks bodies on these routes alone, and goes by the exact word.
    fn of(endpoint: &Endpoint, parts: &Parts) -> Self {
        match endpoint {
            Endpoint::OpenAiChat
            | Endpoint::OpenAiCompletions
            | Endpoint::OpenAiEmbeddings
            | Endpoint::OpenAiResponses
            | Endpoint::AnthropicMessages
                if parts.headers.get(CONTENT_ENCODING).is_some_and(|value| value == "zstd") =>
            {
                Self::Zstd
            }
            _ => Self::Identity,
        }
    }
}

/// Whether a body asks for something that Ollama's reading of the route leaves out and ours does not.
fn asks_more(endpoint: &Endpoint, members: &Members) -> bool {
    let left_out: &[&str] = match endpoint {
        Endpoint::OpenAiChat => &[
            "chat_template_kwargs",
            "keep_alive",
            "logit_bias",
            "max_completion_tokens",
            "min_p",
            "n",
            "num_ctx",
            "options",
            "parallel_tool_calls",
            "think",
            "thinking_budget_tokens",
            "top_k",
        ],
        Endpoint::OpenAiCompletions => &[
            "chat_template_kwargs",
            "keep_alive",
            "logit_bias",
            "logprobs",
            "max_completion_tokens",
            "min_p",
            "n",
            "num_ctx",
            "options",
            "reasoning_effort",
            "think",
            "thinking_budget_tokens",
            "top_k",
        ],
        Endpoint::OpenAiEmbeddings => &["keep_alive", "num_ctx", "options", "truncate"],
        Endpoint::OpenAiResponses => &[
            "chat_template_kwargs",
            "keep_alive",
            "min_p",
            "num_ctx",
            "options",
            "think",
            "top_k",
        ],
        Endpoint::AnthropicMessages => &["keep_alive", "num_ctx", "options", "output_config", "output_format"],
        _ => &[],
    };
    let choice = members.tool_choice.as_deref().unwrap_or_default();
    left_out.iter().any(|name| members.asks.contains(name))
        || match endpoint {
            Endpoint::OpenAiChat => !matches!(choice, "" | "auto"),
            // Ollama cannot force a call on any route, and on these it has tools of its own (a search of the web) that
            // its native ones lack: only what can be had is worth leaving them.
            Endpoint::OpenAiResponses | Endpoint::AnthropicMessages => choice == "none",
            _ => false,
        }
}

/// The names of a body that decide who answers an endpoint, those that are blank left out.
fn deciding(endpoint: &Endpoint, members: Members) -> Vec<String> {
    let Members {
        model,
        name,
        from,
        source,
        destination,
        ..
    } = members;
    let not_blank = |name: &String| !name.trim().is_empty();
    let model = model.filter(not_blank);
    let candidates = match endpoint {
        Endpoint::Show | Endpoint::Delete | Endpoint::Pull | Endpoint::Push => vec![model.or(name)],
        Endpoint::Create => vec![model.or(name), from],
        Endpoint::Copy => vec![source, destination],
        _ => vec![model],
    };
    candidates.into_iter().flatten().filter(not_blank).collect()
}

/// The name in a form, which in Go's eyes the query of the URL goes before.
async fn name_in_form(spooled: &Spooled, parts: &Parts) -> Result<Option<String>, ApiError> {
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let Some(boundary) = content_type.and_then(multipart::boundary) else {
        return Ok(None);
    };
    let query = parts.uri.query().unwrap_or_default();
    let in_query = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "model");
    let name = match in_query {
        Some((_, name)) => Some(name.into_owned()),
        None => {
            let reader = BufReader::new(spooled.reader());
            blocking(move || multipart::model(reader, &boundary)).await?
        }
    };
    Ok(name.filter(|name| !name.trim().is_empty()))
}

fn unreadable(error: &io::Error) -> ApiError {
    ApiError::internal(format!("the request body could not be read back: {error}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(format!("the request body could not be read: {error}")))
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::http::body;

    fn zstd(text: impl AsRef<[u8]>) -> Vec<u8> {
        compress_to_vec(text.as_ref(), CompressionLevel::Fastest)
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    async fn spooled(bytes: &[u8]) -> Spooled {
        Spooled::read(body::full(bytes.to_vec()), 1 << 20, 1 << 30)
            .await
            .unwrap()
    }

    async fn peek_zstd(endpoint: Endpoint, bytes: &[u8]) -> Peeked {
        let parts = parts("/x", &[("content-encoding", "zstd")]);
        peek(&spooled(bytes).await, &endpoint, &parts).await.unwrap()
    }

    /// Trap 62: the name is found in a body that is compressed, too.
    #[tokio::test]
    async fn a_compressed_body_is_routed_by_its_model_where_ollama_unpacks_it() {
        let bytes = zstd(r#"{"model":"a","MODEL":"hf:o/r","n":2} trailing"#);
        for endpoint in [
            Endpoint::OpenAiChat,
            Endpoint::OpenAiCompletions,
            Endpoint::OpenAiEmbeddings,
            Endpoint::OpenAiResponses,
            Endpoint::AnthropicMessages,
        ] {
            let peeked = peek_zstd(endpoint.clone(), &bytes).await;
            assert_eq!(
                (peeked.names, peeked.coding),
                (vec!["hf:o/r".into()], Coding::Zstd),
                "{endpoint:?}"
            );
        }
        for endpoint in [Endpoint::Chat, Endpoint::Generate, Endpoint::Embed, Endpoint::Show] {
            assert_eq!(
                peek_zstd(endpoint.clone(), &bytes).await,
                Peeked::default(),
                "{endpoint:?}"
            );
        }
        let unnamed = parts("/x", &[("content-encoding", "gzip, zstd")]);
        let peeked = peek(&spooled(&bytes).await, &Endpoint::OpenAiChat, &unnamed)
            .await
            .unwrap();
        assert_eq!(peeked, Peeked::default(), "Ollama goes by the exact word");
    }

    #[tokio::test]
    async fn what_does_not_unpack_names_nobody_and_is_explained_in_ollamas_words() {
        let whole = zstd(r#"{"model":"hf:o/r","messages":[]}"#);
        // The model stands in front, but Ollama reads on to the end.
        let long = zstd(format!(r#"{{"model":"hf:o/r","x":"{}"}}"#, " ".repeat(21 << 20)));
        for (bytes, expected) in [
            (&whole[..whole.len() - 5], "unexpected EOF"),
            (br#"{"model":"hf:o/r"}"#, "invalid input: magic number mismatch"),
            (&long, "http: request body too large"),
        ] {
            let peeked = peek_zstd(Endpoint::OpenAiChat, bytes).await;
            assert!(peeked.names.is_empty(), "{expected}");
            let error = text(&spooled(bytes).await, Coding::Zstd).await.unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (400, expected));
        }
        assert_eq!(
            text(&spooled(&whole).await, Coding::Zstd).await.unwrap(),
            r#"{"model":"hf:o/r","messages":[]}"#
        );
    }

    #[tokio::test]
    async fn a_form_names_its_model_after_the_query_of_the_url() {
        let form = b"--XY\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nhf:o/r\r\n--XY--\r\n";
        for (uri, content_type, expected) in [
            ("/x", "multipart/form-data; boundary=XY", Some("hf:o/r")),
            (
                "/x?a=b&model=plain%2Fname",
                "multipart/form-data; boundary=XY",
                Some("plain/name"),
            ),
            ("/x?model=", "multipart/form-data; boundary=\"XY\"", None),
            ("/x", "multipart/form-data; boundary=AB", None),
            ("/x", "application/json", None),
        ] {
            let parts = parts(uri, &[("content-type", content_type)]);
            let peeked = peek(&spooled(form).await, &Endpoint::OpenAiTranscriptions, &parts)
                .await
                .unwrap();
            assert_eq!(
                peeked.names.first().map(String::as_str),
                expected,
                "{uri} {content_type}"
            );
        }
    }

    #[test]
    fn what_ollama_leaves_out_depends_on_the_route() {
        let asks = |endpoint: &Endpoint, body: &str| asks_more(endpoint, &peek::scan_slice(body.as_bytes()).unwrap());
        let (chat, messages, vectors) = (
            Endpoint::OpenAiChat,
            Endpoint::AnthropicMessages,
            Endpoint::OpenAiEmbeddings,
        );
        for (body, expected) in [
            (r#"{"num_ctx":5}"#, [true, true, true]),
            (r#"{"top_k":5}"#, [true, false, false]),
            (r#"{"truncate":false}"#, [false, false, true]),
            (r#"{"tool_choice":"none"}"#, [true, true, false]),
            (
                r#"{"tool_choice":{"type":"tool","name":"web_search"}}"#,
                [true, false, false],
            ),
            (r#"{"tool_choice":{"type":"auto"}}"#, [false, false, false]),
            (
                r#"{"temperature":0,"stream":true,"max_tokens":5,"n":1}"#,
                [false, false, false],
            ),
        ] {
            assert_eq!(
                [&chat, &messages, &vectors].map(|endpoint| asks(endpoint, body)),
                expected,
                "{body}"
            );
        }
        assert!(
            !asks(&Endpoint::Chat, r#"{"options":{"num_ctx":5}}"#),
            "the native routes read it"
        );
    }

    /// A body of some route, with what has to be found in it.
    fn any_request() -> impl Strategy<Value = (Endpoint, &'static [(&'static str, &'static str)], Vec<u8>)> {
        let member = prop::sample::select(vec![
            r#""model":"hf:o/r""#,
            r#""Model":"plain""#,
            r#""mod\u0065l":"b""#,
            r#""model":null"#,
            r#""model":5"#,
            r#""name":"n""#,
            r#""tool_choice":{"type":"any"}"#,
            r#""num_ctx":5"#,
            r#""n":1"#,
            r#""x":[{"model":"no"},"}"]"#,
            r#""prompt":"é\"}😀""#,
        ]);
        let json = (
            prop::sample::select(vec!["", "\u{feff}", " \n"]),
            prop::collection::vec(member, 0..6),
            prop::sample::select(vec!["}", "}}{\"model\":\"c\"}", "} tail", "", ",}"]),
        )
            .prop_map(|(front, members, back)| format!("{front}{{{}{back}", members.join(",")).into_bytes());
        let form = prop::collection::vec(
            prop::sample::select(vec![
                "--XY\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n",
                "--XY\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n--X\r\n\n\r\r\n",
                "--XY--\r\n",
            ]),
            0..4,
        )
        .prop_map(|parts| parts.concat().into_bytes());
        prop_oneof![
            json.clone().prop_map(|bytes| (Endpoint::OpenAiChat, &[][..], bytes)),
            json.clone().prop_map(|bytes| (Endpoint::Show, &[][..], bytes)),
            json.prop_map(|bytes| (Endpoint::OpenAiChat, &[("content-encoding", "zstd")][..], zstd(bytes))),
            form.prop_map(|bytes| (
                Endpoint::OpenAiTranscriptions,
                &[("content-type", "multipart/form-data; boundary=XY")][..],
                bytes
            )),
        ]
    }

    proptest! {
        #[test]
        fn any_chunking_of_a_body_gives_the_same_routing(
            (endpoint, headers, bytes) in any_request(),
            sizes in prop::collection::vec(1usize..40, 1..6),
            memory_bytes in prop::sample::select(vec![0u64, 50, 1 << 20]),
        ) {
            let (mut chunks, mut rest) = (Vec::new(), Bytes::from(bytes.clone()));
            for size in sizes.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                chunks.push(Ok(rest.split_to(size.min(rest.len()))));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let parts = parts("/x", headers);
                let expected = peek(&spooled(&bytes).await, &endpoint, &parts).await.unwrap();
                let body = body::stream(futures_util::stream::iter(chunks));
                let cut = Spooled::read(body, memory_bytes, 1 << 30).await.unwrap();
                let found = peek(&cut, &endpoint, &parts).await.unwrap();
                prop_assert_eq!(&found, &expected);
                let coding = found.coding;
                prop_assert_eq!(text(&cut, coding).await, text(&spooled(&bytes).await, coding).await);
                Ok(())
            })?;
        }
    }
}
