//! Members of a body that decide who answers it, one row per route.

use std::collections::{BTreeSet, HashMap};

use crate::{
    api::ApiEndpoint,
    http::peek::{MemberKey, PeekedValue},
};

/// Members of a route's body that decide who answers it.
pub(super) struct RouteMembers {
    /// Names that decide, in the order in which they do: of each group the first member that is not blank.
    names: &'static [&'static [&'static str]],
    /// Members that Ollama's own reading of the route leaves out, with the values that ask for nothing.
    extras: &'static [(&'static str, Neutral)],
    /// Values of `tool_choice` that Ollama's own reading of the route leaves out.
    tool_choice: UnsupportedChoice,
}

/// Values of a member that ask for nothing, besides `null`.
#[derive(Clone, Copy)]
enum Neutral {
    Null,
    /// An empty object or list.
    Empty,
    /// The number 1.
    One,
    True,
}

impl Neutral {
    fn includes(self, value: &PeekedValue) -> bool {
        matches!(
            (self, value),
            (_, PeekedValue::Null)
                | (Self::Empty, PeekedValue::Empty)
                | (Self::One, PeekedValue::One)
                | (Self::True, PeekedValue::Bool(true))
        )
    }
}

/// Values of `tool_choice` that Ollama leaves out of a route.
#[derive(Clone, Copy)]
enum UnsupportedChoice {
    /// Routes that have no such member.
    NoneAtAll,
    AllButAuto,
    /// The word `none` alone: Ollama runs built-in tools on these routes (a search of the web), which its native routes
    /// lack, and it can force a call on no route. So only `none` is worth the change of route.
    OnlyNone,
}

impl UnsupportedChoice {
    fn includes(self, choice: &str) -> bool {
        match self {
            Self::NoneAtAll => false,
            Self::AllButAuto => !matches!(choice, "" | "auto"),
            Self::OnlyNone => choice == "none",
        }
    }
}

const TOOL_CHOICE: &str = "tool_choice";

/// `output_config` of `/v1/messages` holds a format that Ollama leaves out, and an effort that it reads.
const OUTPUT_CONFIG: &str = "output_config";

const BY_MODEL: RouteMembers = RouteMembers {
    names: &[&["model"]],
    extras: &[],
    tool_choice: UnsupportedChoice::NoneAtAll,
};

/// Routes on which `name` is the older spelling of `model`.
const BY_MODEL_OR_NAME: RouteMembers = RouteMembers {
    names: &[&["model", "name"]],
    ..BY_MODEL
};

const CREATE: RouteMembers = RouteMembers {
    // The new name goes first: a creation under the name of an alias of ours is ours, whatever it is created from.
    names: &[&["model", "name"], &["from"]],
    ..BY_MODEL
};

const COPY: RouteMembers = RouteMembers {
    names: &[&["source"], &["destination"]],
    ..BY_MODEL
};

const OPENAI_CHAT: RouteMembers = RouteMembers {
    extras: &[
        ("chat_template_kwargs", Neutral::Empty),
        ("keep_alive", Neutral::Null),
        ("logit_bias", Neutral::Empty),
        ("max_completion_tokens", Neutral::Null),
        ("min_p", Neutral::Null),
        ("n", Neutral::One),
        ("num_ctx", Neutral::Null),
        ("options", Neutral::Empty),
        ("parallel_tool_calls", Neutral::True),
        ("think", Neutral::Null),
        ("thinking_budget_tokens", Neutral::Null),
        ("top_k", Neutral::Null),
    ],
    tool_choice: UnsupportedChoice::AllButAuto,
    ..BY_MODEL
};

const OPENAI_COMPLETIONS: RouteMembers = RouteMembers {
    extras: &[
        ("chat_template_kwargs", Neutral::Empty),
        ("keep_alive", Neutral::Null),
        ("logit_bias", Neutral::Empty),
        // Ollama accepts the number on this route, and returns no log-probabilities.
        ("logprobs", Neutral::Null),
        ("max_completion_tokens", Neutral::Null),
        ("min_p", Neutral::Null),
        ("n", Neutral::One),
        ("num_ctx", Neutral::Null),
        ("options", Neutral::Empty),
        // Ollama reads it on the chat route only.
        ("reasoning_effort", Neutral::Null),
        ("think", Neutral::Null),
        ("thinking_budget_tokens", Neutral::Null),
        ("top_k", Neutral::Null),
    ],
    ..BY_MODEL
};

const OPENAI_EMBEDDINGS: RouteMembers = RouteMembers {
    extras: &[
        ("keep_alive", Neutral::Null),
        ("num_ctx", Neutral::Null),
        ("options", Neutral::Empty),
        ("truncate", Neutral::Null),
    ],
    ..BY_MODEL
};

const OPENAI_RESPONSES: RouteMembers = RouteMembers {
    extras: &[
        ("chat_template_kwargs", Neutral::Empty),
        ("keep_alive", Neutral::Null),
        ("min_p", Neutral::Null),
        ("num_ctx", Neutral::Null),
        ("options", Neutral::Empty),
        ("think", Neutral::Null),
        ("top_k", Neutral::Null),
    ],
    tool_choice: UnsupportedChoice::OnlyNone,
    ..BY_MODEL
};

const ANTHROPIC_MESSAGES: RouteMembers = RouteMembers {
    extras: &[
        ("keep_alive", Neutral::Null),
        ("num_ctx", Neutral::Null),
        ("options", Neutral::Empty),
        (OUTPUT_CONFIG, Neutral::Empty),
        ("output_format", Neutral::Null),
    ],
    tool_choice: UnsupportedChoice::OnlyNone,
    ..BY_MODEL
};

impl RouteMembers {
    pub(super) fn of(endpoint: &ApiEndpoint) -> &'static Self {
        match endpoint {
            ApiEndpoint::Show | ApiEndpoint::Delete | ApiEndpoint::Pull | ApiEndpoint::Push => &BY_MODEL_OR_NAME,
            ApiEndpoint::Create => &CREATE,
            ApiEndpoint::Copy => &COPY,
            ApiEndpoint::OpenAiChat => &OPENAI_CHAT,
            ApiEndpoint::OpenAiCompletions => &OPENAI_COMPLETIONS,
            ApiEndpoint::OpenAiEmbeddings => &OPENAI_EMBEDDINGS,
            ApiEndpoint::OpenAiResponses => &OPENAI_RESPONSES,
            ApiEndpoint::AnthropicMessages => &ANTHROPIC_MESSAGES,
            _ => &BY_MODEL,
        }
    }

    /// Returns the keys that a scan has to look for.
    pub(super) fn keys(&self) -> Vec<MemberKey> {
        let names = self.names.iter().copied().flatten();
        let extras = self.extras.iter().map(|(name, _)| name);
        let choice = match self.tool_choice {
            UnsupportedChoice::NoneAtAll => None,
            _ => Some(&TOOL_CHOICE),
        };
        names
            .chain(extras)
            .chain(choice)
            .map(|name| match *name {
                TOOL_CHOICE => MemberKey::with_member(TOOL_CHOICE, "type"),
                OUTPUT_CONFIG => MemberKey::with_member(OUTPUT_CONFIG, "format"),
                name => MemberKey::new(name),
            })
            .collect()
    }
}

/// Members of one body, collected with Go's rules: the last duplicate wins, and `null` changes nothing.
pub(super) struct FoundMembers {
    route: &'static RouteMembers,
    texts: HashMap<&'static str, String>,
    /// Extras that ask for something.
    asked: BTreeSet<&'static str>,
}

impl FoundMembers {
    pub(super) fn new(route: &'static RouteMembers) -> Self {
        Self {
            route,
            texts: HashMap::new(),
            asked: BTreeSet::new(),
        }
    }

    /// Takes the next member of the body.
    pub(super) fn add(&mut self, name: &'static str, value: PeekedValue) {
        if let Some((_, neutral)) = self.route.extras.iter().find(|(extra, _)| *extra == name) {
            // The last duplicate wins, so a neutral one takes back what an earlier one asked for.
            if neutral.includes(&value) {
                self.asked.remove(name);
            } else {
                self.asked.insert(name);
            }
            return;
        }
        match value {
            PeekedValue::Null => {}
            PeekedValue::Text(text) => {
                self.texts.insert(name, text);
            }
            // A value of another type than expected counts as absent.
            _ => {
                self.texts.remove(name);
            }
        }
    }

    /// Returns true if the body asks for something that Ollama's own reading of the route leaves out.
    pub(super) fn ask_more(&self) -> bool {
        let choice = self.texts.get(TOOL_CHOICE).map_or("", String::as_str);
        !self.asked.is_empty() || self.route.tool_choice.includes(choice)
    }

    /// Returns the names that decide who answers.
    pub(super) fn into_names(mut self) -> Vec<String> {
        let groups = self.route.names.iter();
        groups
            .filter_map(|group| {
                let mut names = group.iter().filter_map(|name| self.texts.remove(name));
                names.find(|name| !name.trim().is_empty())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::peek::scan_slice;

    fn scan(endpoint: &ApiEndpoint, body: &str) -> FoundMembers {
        let route = RouteMembers::of(endpoint);
        let mut found = FoundMembers::new(route);
        scan_slice(body.as_bytes(), &route.keys(), |name, value| found.add(name, value)).unwrap();
        found
    }

    #[test]
    fn the_last_name_decides_and_null_changes_nothing() {
        for (endpoint, body, expected) in [
            (ApiEndpoint::Chat, r#"{"model":"a","MODEL":"b","name":"c"}"#, &["b"][..]),
            (ApiEndpoint::Chat, r#"{"model":"a","model":null}"#, &["a"]),
            (ApiEndpoint::Chat, r#"{"model":"a","model":5}"#, &[]),
            (ApiEndpoint::Chat, r#"{"model":" "}"#, &[]),
            (ApiEndpoint::Chat, r#"{"name":"n"}"#, &[]),
            (ApiEndpoint::Show, r#"{"model":"m","name":"n"}"#, &["m"]),
            (ApiEndpoint::Show, r#"{"model":" ","name":"n"}"#, &["n"]),
            (ApiEndpoint::Create, r#"{"from":"f","name":"n"}"#, &["n", "f"]),
            (
                ApiEndpoint::Copy,
                r#"{"deſtination":"d","\u017fource":"s"}"#,
                &["s", "d"],
            ),
        ] {
            assert_eq!(scan(&endpoint, body).into_names(), expected, "{body}");
        }
    }

    #[test]
    fn members_that_ask_for_something_are_told_from_those_that_do_not() {
        for (endpoint, body, expected) in [
            (
                ApiEndpoint::OpenAiChat,
                r#"{"num_ctx":2048,"model":"a"}"#,
                &["num_ctx"][..],
            ),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"Num_Ctx":0,"THIN\u212a":false,"\u212aeep_alive":"0"}"#,
                &["keep_alive", "num_ctx", "think"],
            ),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"num_ctx":null,"think":null,"keep_alive":null}"#,
                &[],
            ),
            (ApiEndpoint::OpenAiChat, r#"{"num_ctx":1,"num_ctx":null}"#, &[]),
            (ApiEndpoint::OpenAiChat, r#"{"num_ctx":null,"num_ctx":1}"#, &["num_ctx"]),
            (ApiEndpoint::OpenAiChat, r#"{"n":1}"#, &[]),
            (ApiEndpoint::OpenAiChat, r#"{"n":2,"top_k":1}"#, &["n", "top_k"]),
            (ApiEndpoint::OpenAiChat, r#"{"n":2,"N":1}"#, &[]),
            (ApiEndpoint::OpenAiChat, r#"{"n":11}"#, &["n"]),
            (ApiEndpoint::OpenAiChat, r#"{"parallel_tool_calls":true}"#, &[]),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"parallel_tool_calls":false}"#,
                &["parallel_tool_calls"],
            ),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"options":{},"logit_bias": { } ,"chat_template_kwargs":[ ]}"#,
                &[],
            ),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"options":{"a":{}},"logit_bias":{"1":2}}"#,
                &["logit_bias", "options"],
            ),
            (
                ApiEndpoint::AnthropicMessages,
                r#"{"output_config":{"effort":"low","format":null}}"#,
                &[],
            ),
            (
                ApiEndpoint::AnthropicMessages,
                r#"{"output_config":{"effort":"low","x":{"format":1}}}"#,
                &[],
            ),
            (
                ApiEndpoint::AnthropicMessages,
                r#"{"output_config":{"Format":{"type":"json_schema"}}}"#,
                &["output_config"],
            ),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"messages":[{"num_ctx":1,"think":true}],"a":{"n":2}}"#,
                &[],
            ),
        ] {
            let found = scan(&endpoint, body);
            assert_eq!(found.asked.into_iter().collect::<Vec<_>>(), expected, "{body}");
        }
    }

    #[test]
    fn a_choice_of_tools_is_the_last_word_or_type() {
        for (body, expected) in [
            (r#"{"tool_choice":"none"}"#, true),
            (r#"{"tool_choice":{"type":"any"}}"#, true),
            (r#"{"tool_choice":"none","tool_choice":null}"#, true),
            (r#"{"tool_choice":"none","tool_choice":{}}"#, false),
            (r#"{"tool_choice":[{"type":"none"}]}"#, false),
            ("{}", false),
        ] {
            assert_eq!(scan(&ApiEndpoint::OpenAiChat, body).ask_more(), expected, "{body}");
        }
    }

    #[test]
    fn what_ollama_leaves_out_depends_on_the_route() {
        let (chat, messages, vectors) = (
            ApiEndpoint::OpenAiChat,
            ApiEndpoint::AnthropicMessages,
            ApiEndpoint::OpenAiEmbeddings,
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
                [&chat, &messages, &vectors].map(|endpoint| scan(endpoint, body).ask_more()),
                expected,
                "{body}"
            );
        }
        assert!(
            !scan(&ApiEndpoint::Chat, r#"{"options":{"num_ctx":5}}"#).ask_more(),
            "the native routes read it"
        );
    }
}
