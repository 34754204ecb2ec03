// C interface to llama.cpp's `common/chat`: templates, tool grammars, and the parsing of a model's output. Only
// `chat.rs` calls it.
//
// Everything crosses as UTF-8 JSON text. No exception leaves this file, because one that unwinds into Rust is undefined
// behavior: each call returns NULL and hands back the exception's text through `error`. Strings that are handed out are
// freed with `hubllama_chat_free_string`.

#include "chat.h"
#include "chat-peg-parser.h"
#include "common.h"
#include "json.h"
#include "llama.h"
#include "peg-parser.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace {

// Copies a text into memory from malloc; NULL if there is none.
char * copy(const std::string & text) {
    char * out = static_cast<char *>(std::malloc(text.size() + 1));
    if (out != nullptr) {
        std::memcpy(out, text.data(), text.size());
        out[text.size()] = '\0';
    }
    return out;
}

// Runs `work`. Whatever it throws becomes text, and `failed` the result.
template <typename T, typename F>
T guarded(char ** error, T failed, F && work) {
    try {
        return work();
    } catch (const std::exception & e) {
        *error = copy(e.what());
    } catch (...) {
        *error = copy("unknown C++ exception");
    }
    return failed;
}

common_json strings(const std::vector<std::string> & list) {
    common_json out = common_json::array();
    for (const auto & item : list) {
        out.push_back(item);
    }
    return out;
}

// True if the format puts the answer's text between markers, so that a JSON schema cannot describe the whole answer.
// The markers are those by which `common_chat_templates_apply` recognizes these formats: gpt-oss and its variants,
// Muse, Command, Functionary and Kimi K3.
bool wraps_content(const std::string & source) {
    for (const char * marker : {"<|channel|>", "<atem:function_calls>", "<|START_TEXT|>", ">>>all", "<|end_of_msg|>"}) {
        if (source.find(marker) != std::string::npos) {
            return true;
        }
    }
    return false;
}

// Parser as `apply` returned it, and the delimiters of its running text, with which a reader needs it less often.
struct parser_state {
    common_peg_arena         parser;
    common_chat_format       format;
    std::string              generation_prompt;
    // Strings of which one must come before running text can turn into anything else.
    std::vector<std::string> delimiters;
    // True if all content and all reasoning is text up to one of those.
    bool                     scannable = true;
};

bool is_text_tag(const std::string & tag) {
    return tag == common_chat_peg_builder::CONTENT || tag == common_chat_peg_builder::REASONING;
}

// True if a parser ends in text up to a delimiter, with nothing before it that could still be waiting for input. Adds
// the delimiters to the list.
bool ends_in_until(const common_peg_arena & arena, common_peg_parser_id id, std::vector<std::string> & delimiters) {
    const auto & parser = arena.get(id);
    if (const auto * until = std::get_if<common_peg_until_parser>(&parser)) {
        delimiters.insert(delimiters.end(), until->delimiters.begin(), until->delimiters.end());
        return true;
    }
    if (const auto * rule = std::get_if<common_peg_rule_parser>(&parser)) {
        return ends_in_until(arena, rule->child, delimiters);
    }
    if (const auto * ref = std::get_if<common_peg_ref_parser>(&parser)) {
        return ends_in_until(arena, arena.get_rule(ref->name), delimiters);
    }
    if (const auto * atomic = std::get_if<common_peg_atomic_parser>(&parser)) {
        return ends_in_until(arena, atomic->child, delimiters);
    }
    if (const auto * tag = std::get_if<common_peg_tag_parser>(&parser)) {
        return ends_in_until(arena, tag->child, delimiters);
    }
    if (const auto * sequence = std::get_if<common_peg_sequence_parser>(&parser)) {
        const auto & children = sequence->children;
        const bool   quiet    = !children.empty() && std::all_of(children.begin(), children.end() - 1, [&](auto child) {
            const auto & before = arena.get(child);
            return std::holds_alternative<common_peg_not_parser>(before) ||
                   std::holds_alternative<common_peg_any_parser>(before) ||
                   std::holds_alternative<common_peg_epsilon_parser>(before);
        });
        return quiet && ends_in_until(arena, children.back(), delimiters);
    }
    return false;
}

// Collects the delimiters of everything that is tagged as content or reasoning.
void find_delimiters(parser_state & state) {
    for (common_peg_parser_id id = 0; id < state.parser.size(); id++) {
        const auto * tag = std::get_if<common_peg_tag_parser>(&state.parser.get(id));
        if (tag != nullptr && is_text_tag(tag->tag)) {
            state.scannable = ends_in_until(state.parser, tag->child, state.delimiters) && state.scannable;
        }
    }
    std::sort(state.delimiters.begin(), state.delimiters.end());
    state.delimiters.erase(std::unique(state.delimiters.begin(), state.delimiters.end()), state.delimiters.end());
}

// Places of a message's parts in the text, which `common_chat_peg_mapper` does not keep. Positions are bytes behind the
// generation prompt.
struct outline {
    struct call {
        size_t begin;
        size_t content;
        size_t end    = 0;
        bool   closed = false;
    };

    const common_peg_ast_arena & nodes;
    size_t                       prefix;
    size_t                       length;
    std::vector<call>            calls;
    // Position up to which the text is in the message: as content, as reasoning, as calls that are closed, or skipped.
    size_t                       settled = 0;
    // Kind of the part right before `settled`.
    const char *                 last    = "";
    // Kind of the text that runs on at the end.
    const char *                 tail    = "";
    // Bytes of content so far.
    size_t                       content = 0;
    // Text that the parser skipped: on its way to a call, or a call of a tool that the request does not have.
    std::string                  skipped;

    size_t place(size_t at) const { return at > prefix ? at - prefix : 0; }

    void settle(size_t at, const char * kind) {
        settled = std::max(settled, place(at));
        last    = kind;
    }

    void visit(common_peg_ast_id id) {
        if (id == COMMON_PEG_INVALID_AST_ID) {
            return;
        }
        const auto & node = nodes.get(id);
        tail              = "";
        if (node.tag == common_chat_peg_builder::TOOL_NAME) {
            // Some formats do not mark a call's end; the next call ends it.
            if (!calls.empty() && !calls.back().closed) {
                close(node.start);
            }
            calls.push_back({ settled, content });
        } else if (node.tag == common_chat_peg_builder::TOOL_CLOSE) {
            close(node.end);
        } else if (is_text_tag(node.tag)) {
            const bool   is_content = node.tag == common_chat_peg_builder::CONTENT;
            const char * kind       = is_content ? "content" : "thinking";
            content += is_content ? node.text.size() : 0;
            settle(node.end, kind);
            if (node.is_partial && node.end == length && node.end > std::max(node.start, prefix)) {
                tail = kind;
            }
            return;
        } else if (node.rule == "scan-to-toolcall" || node.rule == "unsolicited") {
            // Rules of the parsers for Gemma 4 and gpt-oss, whose text the mapper drops.
            skipped += node.text;
            settle(node.end, "content");
        }
        for (const auto child : node.children) {
            visit(child);
        }
        if (node.tag == common_chat_peg_builder::TOOL && !node.is_partial) {
            close(node.end);
        }
    }

    void close(size_t at) {
        if (!calls.empty()) {
            calls.back().end    = place(at);
            calls.back().closed = true;
            settle(at, "call");
        }
    }
};

} // namespace

extern "C" {

void hubllama_chat_free_string(char * text) {
    std::free(text);
}

// Templates -----------------------------------------------------------------------------------------------------------

void * hubllama_chat_templates_new(const char * source, const char * bos, const char * eos, char ** error) {
    return guarded<void *>(error, nullptr, [&]() -> void * {
        return common_chat_templates_init(nullptr, source, bos, eos).release();
    });
}

void hubllama_chat_templates_free(void * templates) {
    common_chat_templates_free(static_cast<common_chat_templates *>(templates));
}

// Returns {"supports_tools": true, …}.
char * hubllama_chat_describe(const void * templates, char ** error) {
    return guarded<char *>(error, nullptr, [&]() {
        const auto * tmpls = static_cast<const common_chat_templates *>(templates);
        common_json out = common_json::object();
        for (const auto & [key, value] : common_chat_templates_get_caps(tmpls)) {
            out[key] = value;
        }
        out["enable_thinking"] = common_chat_templates_support_enable_thinking(tmpls);
        return copy(out.dump_safe());
    });
}

// input: {"messages": […OpenAI…], "tools": […OpenAI…], "tool_choice": "auto", "parallel_tool_calls": bool,
//         "enable_thinking": bool, "add_generation_prompt": bool, "continue_final_message": bool,
//         "kwargs": {"name": "json text"}, "now": seconds since 1970, "json_schema": "json text"}
// The schema is put into the grammar of formats that wrap the answer's text, and ignored for all others.
char * hubllama_chat_apply(const void * templates, const char * input, char ** error) {
    return guarded<char *>(error, nullptr, [&]() {
        const auto * tmpls = static_cast<const common_chat_templates *>(templates);
        const common_json in = common_json::parse(input);
        common_chat_templates_inputs inputs;
        inputs.messages = common_chat_msgs_parse_oaicompat(in.at("messages"));
        if (in.contains("tools") && !in.at("tools").empty()) {
            inputs.tools = common_chat_tools_parse_oaicompat(in.at("tools"));
        }
        inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(in.value("tool_choice", "auto"));
        inputs.parallel_tool_calls = in.value("parallel_tool_calls", true);
        inputs.enable_thinking = in.value("enable_thinking", true);
        // The format that splits reasoning from content. The serialized parser depends on it.
        inputs.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
        inputs.use_jinja = true;
        inputs.add_generation_prompt = in.value("add_generation_prompt", true);
        // With AUTO, `common_chat_templates_apply` renders all messages but the last and continues that one, as content
        // or as reasoning. No other turn of the assistant is opened behind it.
        if (in.value("continue_final_message", false)) {
            inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
            inputs.add_generation_prompt = false;
        }
        if (in.contains("now")) {
            inputs.now = std::chrono::system_clock::from_time_t(static_cast<std::time_t>(in.at("now").get<int64_t>()));
        }
        if (in.contains("kwargs")) {
            for (const auto & [key, value] : in.at("kwargs").items()) {
                inputs.chat_template_kwargs[key] = value.get<std::string>();
            }
        }
        const bool wraps = wraps_content(common_chat_templates_source(tmpls));
        if (wraps) {
            inputs.json_schema = in.value("json_schema", "");
        }
        const common_chat_params params = common_chat_templates_apply(tmpls, inputs);
        common_json out = common_json::object();
        out["prompt"] = params.prompt;
        out["generation_prompt"] = params.generation_prompt;
        out["format"] = static_cast<int>(params.format);
        out["supports_thinking"] = params.supports_thinking;
        out["thinking_start_tag"] = params.thinking_start_tag;
        out["thinking_end_tags"] = strings(params.thinking_end_tags);
        out["preserved_tokens"] = strings(params.preserved_tokens);
        out["additional_stops"] = strings(params.additional_stops);
        out["parser"] = params.parser;
        out["wraps_content"] = wraps;
        out["grammar"] = params.grammar;
        out["grammar_lazy"] = params.grammar_lazy;
        common_json triggers = common_json::array();
        for (const auto & trigger : params.grammar_triggers) {
            common_json item = common_json::object();
            item["type"] = static_cast<int>(trigger.type);
            item["value"] = trigger.value;
            triggers.push_back(item);
        }
        out["grammar_triggers"] = triggers;
        return copy(out.dump_safe());
    });
}

// Parsing -------------------------------------------------------------------------------------------------------------

void * hubllama_chat_parser_new(int format, const char * parser, const char * generation_prompt, char ** error) {
    return guarded<void *>(error, nullptr, [&]() -> void * {
        auto state    = std::make_unique<parser_state>();
        state->format = static_cast<common_chat_format>(format);
        if (parser[0] != '\0') {
            state->generation_prompt = generation_prompt;
            state->parser.load(parser);
        } else {
            // A template without tools and reasoning has no parser: everything is content.
            state->parser = build_chat_peg_parser([](common_chat_peg_builder & p) { return p.content(p.rest()) + p.end(); });
        }
        find_delimiters(*state);
        return state.release();
    });
}

void hubllama_chat_parser_free(void * parser) {
    delete static_cast<parser_state *>(parser);
}

// Returns {"delimiters": ["…"]}.
char * hubllama_chat_parser_describe(const void * parser, char ** error) {
    return guarded<char *>(error, nullptr, [&]() {
        const auto * state  = static_cast<const parser_state *>(parser);
        common_json  out    = common_json::object();
        out["delimiters"]   = strings(state->delimiters);
        return copy(out.dump_safe());
    });
}

// Parses as `common_chat_parse` does, but without its exception for text in another format, and with the places of the
// parts in the text.
//
// Returns
// {"state": "failed" | "open" | "matched", "end": 0, "settled": 0, "last": "", "tail": "",
//  "content": "", "thinking": "", "skipped": "",
//  "tool_calls": [{"id": "", "name": "", "arguments": "{…}", "closed": bool, "begin": 0, "end": 0, "content": 0}]}
//
// `llama::ParsedMessage` documents the fields.
char * hubllama_chat_parse(const void * parser, const char * text, size_t length, char ** error) {
    return guarded<char *>(error, nullptr, [&]() {
        const auto * state = static_cast<const parser_state *>(parser);
        common_peg_parse_context context(state->generation_prompt + std::string(text, length),
                                         COMMON_PEG_PARSE_FLAG_LENIENT);
        const auto  result = state->parser.parse(context);
        common_json out    = common_json::object();
        if (result.fail()) {
            out["state"] = "failed";
            return copy(out.dump_safe());
        }
        common_chat_msg message;
        std::unique_ptr<common_chat_peg_mapper> mapper;
        switch (state->format) {
            case COMMON_CHAT_FORMAT_PEG_GEMMA4:
                mapper = std::make_unique<common_chat_peg_gemma4_mapper>(message);
                break;
            case COMMON_CHAT_FORMAT_PEG_MINIMAX_M3:
                mapper = std::make_unique<common_chat_peg_minimax_m3_mapper>(message);
                break;
            default:
                mapper = std::make_unique<common_chat_peg_mapper>(message);
        }
        mapper->from_ast(context.ast, result);
        outline found{ context.ast, state->generation_prompt.size(), context.input.size() };
        for (const auto node : result.nodes) {
            found.visit(node);
        }
        // In formats that do not mark a call's end, the end of a whole message ends the last call.
        if (!result.need_more_input() && !found.calls.empty() && !found.calls.back().closed) {
            found.close(result.end);
        }
        out["state"]    = result.need_more_input() ? "open" : "matched";
        out["end"]      = found.place(result.end);
        out["settled"]  = found.settled;
        out["last"]     = found.last;
        out["tail"]     = state->scannable ? found.tail : "";
        out["content"]  = message.content;
        out["thinking"] = message.reasoning_content;
        out["skipped"]  = found.skipped;
        common_json calls = common_json::array();
        for (size_t i = 0; i < message.tool_calls.size() && i < found.calls.size(); i++) {
            const auto & call = message.tool_calls[i];
            const auto & where = found.calls[i];
            common_json  item  = common_json::object();
            item["id"]         = call.id;
            item["name"]       = call.name;
            item["arguments"]  = call.arguments;
            item["closed"]     = where.closed;
            item["begin"]      = where.begin;
            item["end"]        = where.end;
            item["content"]    = where.content;
            calls.push_back(item);
        }
        out["tool_calls"] = calls;
        return copy(out.dump_safe());
    });
}

} // extern "C"
