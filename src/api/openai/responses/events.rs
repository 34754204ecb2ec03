//! Events of a streamed response: named, numbered, and with sorted keys.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{
    echo::{RequestEcho, ResponseFailure, ResponseState, sorted},
    items::OutputItems,
};
use crate::{
    api::{error::ApiError, listing, stream::FrameEncoder},
    http::sse,
    inference::{AnswerSummary, Event},
};

/// Encoder of the events of one response.
#[derive(Debug)]
pub(super) struct ResponseEvents {
    echo: RequestEcho,
    items: OutputItems,
    writer: Writer,
    /// Unix seconds.
    created_at: i64,
    /// True when the first events have been sent.
    began: bool,
}

/// Writer that numbers the events.
#[derive(Debug, Default)]
struct Writer {
    sequence_number: u64,
}

impl Writer {
    fn write(&mut self, name: &str, data: Value, out: &mut Vec<u8>) {
        let mut data = data;
        if let Value::Object(members) = &mut data {
            members.insert("sequence_number".into(), self.sequence_number.into());
            members.insert("type".into(), name.into());
        }
        self.sequence_number += 1;
        out.extend_from_slice(&sse::event(name, sorted(data)));
    }
}

impl ResponseEvents {
    pub(super) fn new(echo: RequestEcho, id: String) -> Self {
        Self {
            echo,
            items: OutputItems::new(id, true),
            writer: Writer::default(),
            created_at: now(),
            began: false,
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.began, true) {
            return;
        }
        for name in ["response.created", "response.in_progress"] {
            let state = ResponseState {
                status: "in_progress",
                output: &[],
                ..self.state()
            };
            let data = json!({"response": self.echo.streamed(&state)});
            self.writer.write(name, data, out);
        }
    }

    fn state(&self) -> ResponseState<'_> {
        ResponseState {
            id: self.items.response_id(),
            created_at: self.created_at,
            output: self.items.done(),
            ..ResponseState::default()
        }
    }

    fn finish(&mut self, finish: &AnswerSummary, out: &mut Vec<u8>) {
        let Self { items, writer, .. } = self;
        items.finish(&mut |name, data| writer.write(name, data, out));
        let state = ResponseState {
            completed_at: Some(now()),
            // Ollama sends this status even if the token limit ended the answer.
            status: "completed",
            usage: Some(&finish.usage),
            ..self.state()
        };
        let data = json!({"response": self.echo.streamed(&state)});
        // This event ends the stream: the route has no `[DONE]`.
        self.writer.write("response.completed", data, out);
    }
}

impl FrameEncoder for ResponseEvents {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        self.begin(out);
        match event {
            Event::Delta(delta) => {
                let Self { items, writer, .. } = self;
                items.add(delta, &mut |name, data| writer.write(name, data, out));
            }
            Event::Finished(finish) => self.finish(&finish, out),
        }
    }

    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // The stream helpers of OpenAI's SDKs refuse a stream that does not begin with `response.created`, even if an
        // error is all that follows.
        self.begin(out);
        let state = ResponseState {
            status: "failed",
            error: Some(ResponseFailure {
                code: code(error),
                message: &error.message,
            }),
            ..self.state()
        };
        let data = json!({"response": self.echo.streamed(&state)});
        self.writer.write("response.failed", data, out);
    }
}

/// Returns OpenAI's code for an error of this route.
fn code(error: &ApiError) -> &'static str {
    match error.status {
        hyper::StatusCode::BAD_REQUEST => "invalid_prompt",
        hyper::StatusCode::SERVICE_UNAVAILABLE => "rate_limit_exceeded",
        _ => "server_error",
    }
}

pub(super) fn now() -> i64 {
    listing::unix_seconds(SystemTime::now())
}
