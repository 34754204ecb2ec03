// A plain C surface over llama.cpp's `common/chat`: templates, tool grammars, and the parsing of what a model writes.
//
// Everything crosses as UTF-8 JSON text. No exception leaves this file: each call returns NULL and hands back the
// exception's text through `error`. Strings that are handed out are freed with `hubllama_chat_free_string`.

#include "chat.h"
#include "common.h"
#include "json.h"
#include "llama.h"
#include "peg-parser.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

namespace {

char * copy(const std::string & text) {
    char * out = static_cast<char *>(std::malloc(text.size() + 1));
    if (out != nullptr) {
        std::memcpy(out, text.data(), text.size());
        out[text.size()] = '\0';
    }
    return out;
}

// Runs `work`, turning whatever it throws into text.
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

// Whether the format puts the answer's text between markers of its own, so that a constraint on the text alone does not fit.
// The markers are those by which `common/chat` tells these formats (gpt-oss and its kin, Muse, Command, Functionary, Kimi K3).
bool wraps_content(const std::string & source) {
    for (const char * marker : {"<|channel|>", "<atem:function_calls>", "<|START_TEXT|>", ">>>all", "<|end_of_msg|>"}) {
        if (source.find(marker) != std::string::npos) {
            return true;
        }
    }
    return false;
}

// What the parser needs of the parameters that `apply` returned.
struct parser_state {
    common_chat_parser_params params;
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

// {"supports_tools": true, …}
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
//         "enable_thinking": bool, "kwargs": {"name": "json text"}, "now": seconds since 1970,
//         "json_schema": "json text", which is put into the grammar of formats that wrap the answer's text and ignored else}
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
        inputs.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
        inputs.use_jinja = true;
        inputs.add_generation_prompt = in.value("add_generation_prompt", true);
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

void * hubllama_chat_parser_new(int format, const char * parser, const char * generation_prompt, bool tools,
                                char ** error) {
    return guarded<void *>(error, nullptr, [&]() -> void * {
        auto state = std::make_unique<parser_state>();
        state->params.format = static_cast<common_chat_format>(format);
        state->params.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
        state->params.generation_prompt = generation_prompt;
        state->params.parse_tool_calls = tools;
        if (parser[0] != '\0') {
            state->params.parser.load(parser);
        }
        return state.release();
    });
}

void hubllama_chat_parser_free(void * parser) {
    delete static_cast<parser_state *>(parser);
}

// {"content": "", "thinking": "", "tool_calls": [{"id": "", "name": "", "arguments": "{…}"}]}
char * hubllama_chat_parse(const void * parser, const char * text, size_t length, bool partial, char ** error) {
    return guarded<char *>(error, nullptr, [&]() {
        const auto * state = static_cast<const parser_state *>(parser);
        const common_chat_msg msg = common_chat_parse(std::string(text, length), partial, state->params);
        common_json out = common_json::object();
        out["content"] = msg.render_content("");
        out["thinking"] = msg.reasoning_content;
        common_json calls = common_json::array();
        for (const auto & call : msg.tool_calls) {
            common_json item = common_json::object();
            item["id"] = call.id;
            item["name"] = call.name;
            item["arguments"] = call.arguments;
            calls.push_back(item);
        }
        out["tool_calls"] = calls;
        return copy(out.dump_safe());
    });
}

} // extern "C"
