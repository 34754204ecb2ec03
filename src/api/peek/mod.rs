//! Peeking: what a request's body says about who answers it, found without parsing the body.
//!
//! Most requests are forwarded to Ollama as the bytes that came, so their body is only scanned for the members that
//! decide ([`routes`] has them, one row per route). Bodies that Ollama would unpack are unpacked, and a form is
//! searched for its `model` field.

mod routes;

use std::io::{self, BufReader, Read};

use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    http::request::Parts,
};

use self::routes::{FoundMembers, RouteMembers};
use super::{ApiEndpoint, error::ApiError, multipart};
use crate::http::{
    peek::{self, PeekError},
    spool::SpooledBody,
    zstd::{ZstdDecoder, ZstdError},
};

/// Largest body in bytes that is parsed here. Only forwarded ones may be larger: they need not fit in memory.
const MAX_PARSED_BYTES: u64 = 256 << 20;

/// Parts of a body that decide who answers it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PeekedBody {
    /// Model names, the most decisive first; none if the body cannot be read or has none.
    pub(crate) names: Vec<String>,
    /// True when the body asks for something that Ollama's own reading of this route leaves out.
    pub(crate) asks_more: bool,
    pub(crate) coding: BodyCoding,
}

/// Content coding of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BodyCoding {
    #[default]
    Identity,
    Zstd,
}

/// Scans a body. Fails only for reasons of this machine: a body that cannot be read names no model.
pub(crate) async fn peek(spooled: &SpooledBody, endpoint: &ApiEndpoint, parts: &Parts) -> Result<PeekedBody, ApiError> {
    if *endpoint == ApiEndpoint::OpenAiTranscriptions {
        let names = name_in_form(spooled, parts).await?.into_iter().collect();
        return Ok(PeekedBody {
            names,
            ..PeekedBody::default()
        });
    }
    let coding = BodyCoding::of(endpoint, parts);
    let route = RouteMembers::of(endpoint);
    let scanned = match (coding, spooled.in_memory()) {
        (BodyCoding::Identity, Some(bytes)) => {
            let mut found = FoundMembers::new(route);
            peek::scan_slice(bytes, &route.keys(), |name, value| found.add(name, value)).map(|()| found)
        }
        (BodyCoding::Identity, None) => {
            // The rest of this body is in a file, which only a blocking thread may read.
            let reader = spooled.reader();
            blocking(move || scan(reader, route)).await?
        }
        (BodyCoding::Zstd, _) => {
            // Unpacking takes CPU time even if the packed bytes are in memory.
            let reader = ZstdDecoder::new(BufReader::new(spooled.reader()));
            blocking(move || scan(reader, route)).await?
        }
    };
    match scanned {
        Ok(found) => Ok(PeekedBody {
            asks_more: found.ask_more(),
            names: found.into_names(),
            coding,
        }),
        // A decoder's error is the client's mistake, handled below; any other means that the spooled bytes could not be
        // read back.
        Err(PeekError::Read(error)) if ZstdError::of(&error).is_none() => Err(unreadable(&error)),
        // Such a body names no model and is forwarded, so that Ollama words the error.
        Err(PeekError::NotAnObject | PeekError::Read(_)) => Ok(PeekedBody {
            coding,
            ..PeekedBody::default()
        }),
    }
}

fn scan(reader: impl Read, route: &'static RouteMembers) -> Result<FoundMembers, PeekError> {
    let mut found = FoundMembers::new(route);
    peek::scan(reader, &route.keys(), |name, value| found.add(name, value))?;
    Ok(found)
}

/// Returns the unpacked text of a body.
pub(crate) async fn text(spooled: &SpooledBody, coding: BodyCoding) -> Result<Bytes, ApiError> {
    let reader = spooled.reader();
    match (coding, spooled.in_memory()) {
        // No copy: clones of `Bytes` share their memory.
        (BodyCoding::Identity, Some(bytes)) => Ok(bytes.clone()),
        (BodyCoding::Identity, None) if spooled.len() > MAX_PARSED_BYTES => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {MAX_PARSED_BYTES} bytes; send fewer or smaller images"),
        )),
        (BodyCoding::Identity, None) => blocking(move || read_all(reader)).await?,
        (BodyCoding::Zstd, _) => blocking(move || read_all(ZstdDecoder::new(BufReader::new(reader)))).await?,
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

impl BodyCoding {
    /// Returns the coding that Ollama would see: it unpacks bodies on these routes only, and compares the header with
    /// the exact word `zstd`.
    fn of(endpoint: &ApiEndpoint, parts: &Parts) -> Self {
        match endpoint {
            ApiEndpoint::OpenAiChat
            | ApiEndpoint::OpenAiCompletions
            | ApiEndpoint::OpenAiEmbeddings
            | ApiEndpoint::OpenAiResponses
            | ApiEndpoint::AnthropicMessages
                if parts.headers.get(CONTENT_ENCODING).is_some_and(|value| value == "zstd") =>
            {
                Self::Zstd
            }
            _ => Self::Identity,
        }
    }
}

/// Returns the model's name in a form. The query of the URL goes before it, as in Go's `Request.FormValue`.
async fn name_in_form(spooled: &SpooledBody, parts: &Parts) -> Result<Option<String>, ApiError> {
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

    async fn spooled(bytes: &[u8]) -> SpooledBody {
        SpooledBody::read(body::full(bytes.to_vec()), 1 << 20, 1 << 30)
            .await
            .unwrap()
    }

    async fn peek_zstd(endpoint: ApiEndpoint, bytes: &[u8]) -> PeekedBody {
        let parts = parts("/x", &[("content-encoding", "zstd")]);
        peek(&spooled(bytes).await, &endpoint, &parts).await.unwrap()
    }

    /// The name is found in a compressed body, too.
    #[tokio::test]
    async fn a_compressed_body_is_routed_by_its_model_where_ollama_unpacks_it() {
        let bytes = zstd(r#"{"model":"a","MODEL":"hf:o/r","n":2} trailing"#);
        for endpoint in [
            ApiEndpoint::OpenAiChat,
            ApiEndpoint::OpenAiCompletions,
            ApiEndpoint::OpenAiEmbeddings,
            ApiEndpoint::OpenAiResponses,
            ApiEndpoint::AnthropicMessages,
        ] {
            let peeked = peek_zstd(endpoint.clone(), &bytes).await;
            assert_eq!(
                (peeked.names, peeked.coding),
                (vec!["hf:o/r".into()], BodyCoding::Zstd),
                "{endpoint:?}"
            );
        }
        for endpoint in [
            ApiEndpoint::Chat,
            ApiEndpoint::Generate,
            ApiEndpoint::Embed,
            ApiEndpoint::Show,
        ] {
            assert_eq!(
                peek_zstd(endpoint.clone(), &bytes).await,
                PeekedBody::default(),
                "{endpoint:?}"
            );
        }
        let unnamed = parts("/x", &[("content-encoding", "gzip, zstd")]);
        let peeked = peek(&spooled(&bytes).await, &ApiEndpoint::OpenAiChat, &unnamed)
            .await
            .unwrap();
        assert_eq!(peeked, PeekedBody::default(), "Ollama goes by the exact word");
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
            let peeked = peek_zstd(ApiEndpoint::OpenAiChat, bytes).await;
            assert!(peeked.names.is_empty(), "{expected}");
            let error = text(&spooled(bytes).await, BodyCoding::Zstd).await.unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (400, expected));
        }
        assert_eq!(
            text(&spooled(&whole).await, BodyCoding::Zstd).await.unwrap(),
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
            let peeked = peek(&spooled(form).await, &ApiEndpoint::OpenAiTranscriptions, &parts)
                .await
                .unwrap();
            assert_eq!(
                peeked.names.first().map(String::as_str),
                expected,
                "{uri} {content_type}"
            );
        }
    }

    /// Body of some route, with its headers.
    fn any_request() -> impl Strategy<Value = (ApiEndpoint, &'static [(&'static str, &'static str)], Vec<u8>)> {
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
            json.clone().prop_map(|bytes| (ApiEndpoint::OpenAiChat, &[][..], bytes)),
            json.clone().prop_map(|bytes| (ApiEndpoint::Show, &[][..], bytes)),
            json.prop_map(|bytes| (
                ApiEndpoint::OpenAiChat,
                &[("content-encoding", "zstd")][..],
                zstd(bytes)
            )),
            form.prop_map(|bytes| (
                ApiEndpoint::OpenAiTranscriptions,
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
                let cut = SpooledBody::read(body, memory_bytes, 1 << 30).await.unwrap();
                let found = peek(&cut, &endpoint, &parts).await.unwrap();
                prop_assert_eq!(&found, &expected);
                let coding = found.coding;
                prop_assert_eq!(text(&cut, coding).await, text(&spooled(&bytes).await, coding).await);
                Ok(())
            })?;
        }
    }
}
