//! Templates and what they render to; expectations come from Go.

use super::{GoTemplate, TemplateError};
use crate::inference::{Message, ThinkMode, ToolCall};

fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
    turns
        .iter()
        .map(|&(role, content)| Message::text(role, content))
        .collect()
}

fn render(source: &str) -> Result<String, TemplateError> {
    GoTemplate::parse(source)?.render(&turns(&[("system", "S"), ("user", "P")]), ThinkMode::Unset)
}

#[track_caller]
fn check(source: &str, expected: &str) {
    assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
}

#[test]
fn the_common_shapes_render_as_in_go() {
    for (source, expected) in [
        ("Q: {{ .Prompt }}\nA:", "Q: P\nA:"),
        ("{{ .System }} {{ .Prompt }}", "S P"),
        (
            "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}{{ .Response }}<end>",
            "<s>S</s>P",
        ),
        ("{{ if .Suffix }}a{{ else if .System }}b{{ else }}c{{ end }}", "b"),
        ("{{ if not .Suffix }}x{{ end }}", "x"),
        ("{{ if and .System (not .Suffix) }}x{{ else }}y{{ end }}", "x"),
        ("{{ or .Suffix \"none\" }}", "none"),
        ("a  {{- /* why */ -}}  b", "ab"),
        ("a \n {{- .Prompt -}} \n b", "aPb"),
        ("{{ `}}` }}{{ \"\\n\\\"\\u00e9\" }}", "}}\n\"é"),
        (
            "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "{{ range $i, $m := .Messages }}{{ if eq $m.Role \"user\" }}{{ $i }}{{ $m.Content }}{{ $.System }}{{ end }}{{ end }}",
            "1PS",
        ),
        (
            "{{ if eq .System \"A\" \"S\" }}x{{ end }}{{ if ne .System \"S\" }}y{{ end }}",
            "x",
        ),
        ("{{ range .Tools }}t{{ else }}none{{ end }}", "none"),
        ("plain { } text", "plain { } text"),
    ] {
        check(source, expected);
    }
}

/// The expected texts are what Go 1.26 gave for the same data.
#[test]
fn variables_pipes_and_functions_work_as_in_go() {
    for (source, expected) in [
        ("{{ $x := \"a\" }}{{ if true }}{{ $x = \"b\" }}{{ end }}{{ $x }}", "b"),
        (
            "{{ $x := \"a\" }}{{ if true }}{{ $x := \"b\" }}{{ $x }}{{ end }}{{ $x }}",
            "ba",
        ),
        (
            "{{ with .System }}<{{ . }}>{{ else }}none{{ end }}{{ with .Nope }}x{{ else }}none{{ end }}",
            "<S>none",
        ),
        ("{{ with $s := .System }}{{ $s }}{{ end }}", "S"),
        ("{{ with .Nope }}a{{ else with .System }}b{{ . }}{{ end }}", "bS"),
        ("{{ if $n := len .Messages }}{{ $n }}{{ end }}", "2"),
        ("{{ .System | printf \"%s-%s\" \"a\" | len }}", "3"),
        (
            "{{ (index .Messages 1).Content }}{{ (index .Messages 0).Role | printf \"%q\" }}",
            "P\"system\"",
        ),
        (
            "{{ range .Messages }}{{ if eq .Role \"system\" }}{{ continue }}{{ end }}{{ .Content }}{{ end }}",
            "P",
        ),
        ("{{ range .Messages }}{{ .Content }}{{ break }}{{ end }}", "S"),
        (
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ $last }} {{ end }}",
            "false true ",
        ),
        (
            "{{ slice .Prompt 0 1 }}{{ slice \"hello\" 1 3 }}{{ len \"é\" }}",
            "Pel2",
        ),
        (
            "{{ if lt 1 2 }}a{{ end }}{{ if ge \"b\" \"a\" }}b{{ end }}{{ if gt 1.5 2.5 }}c{{ end }}",
            "ab",
        ),
        ("{{ print 1 2 \"a\" true }} {{ println \"x\" 3 }}", "1 2atrue x 3\n"),
        (
            "{{ json .System }}{{ json nil }}{{ json \"<\" }}",
            "\"S\"null\"\\u003c\"",
        ),
        ("{{ printf \"%d%%%v\" 3 true }}", "3%true"),
        (
            "{{ 1.5 }} {{ 1000000.0 }} {{ 0x10 }} {{ -3 }} {{ 1_000 }} {{ true }}",
            "1.5 1e+06 16 -3 1000 true",
        ),
        ("{{ .Nope }}", "<no value>"),
        ("{{ eq .Nope nil }}{{ not .Nope }}", "truetrue"),
        ("{{ and .System .Prompt }}{{ or .Nope .Prompt }}", "PP"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        (
            "{{- /* a */ -}}\n{{ .IsThinkSet }}{{ .Think }}{{ .ThinkLevel }}",
            "falsefalse",
        ),
    ] {
        check(source, expected);
    }
}

#[test]
fn an_older_template_is_filled_once_for_each_exchange() {
    let template = GoTemplate::parse(
        "{{ if .System }}[{{ .System }}] {{ end }}{{ if .Prompt }}U:{{ .Prompt }} {{ end }}A:{{ .Response }}</s>",
    )
    .unwrap();
    let conversation = [
        ("system", "s1"),
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("system", "s2"),
        ("user", "d"),
    ];
    let rendered = template.render(&turns(&conversation), ThinkMode::Unset).unwrap();
    assert_eq!(rendered, "[s1] U:a\n\nb A:c</s>[s2] U:d A:");
    // An answer that was begun goes on.
    let rendered = template
        .render(&turns(&[("user", "a"), ("assistant", "b")]), ThinkMode::Unset)
        .unwrap();
    assert_eq!(rendered, "U:a A:b");
    // The end is found in the text, whichever branch is taken.
    let template = GoTemplate::parse("{{ if .System }}x{{ .Response }}{{ end }}{{ .Prompt }}").unwrap();
    assert_eq!(template.render(&turns(&[("user", "a")]), ThinkMode::Unset).unwrap(), "");
    // Without one, it stands at the end.
    let template = GoTemplate::parse("{{ .Prompt }};").unwrap();
    let conversation = turns(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    assert_eq!(template.render(&conversation, ThinkMode::Unset).unwrap(), "a;bc;");
}

#[test]
fn neighbors_of_the_same_role_are_one_turn_but_for_tools() {
    let template =
        GoTemplate::parse("{{ .System }}|{{ range .Messages }}{{ .Role }}:{{ .Content }}|{{ end }}").unwrap();
    let conversation = [
        ("system", "a"),
        ("user", "b"),
        ("user", "c"),
        ("tool", "d"),
        ("tool", "e"),
        ("system", "f"),
    ];
    assert_eq!(
        template.render(&turns(&conversation), ThinkMode::Unset).unwrap(),
        "a\n\nf|system:a|user:b\n\nc|tool:d|tool:e|system:f|"
    );
}

#[test]
fn calls_of_an_earlier_turn_are_shown_as_json() {
    let template = GoTemplate::parse(
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Name }}{{ .Function.Arguments }}{{ range $k, $v := .Function.Arguments }}{{ $k }}={{ $v }};{{ end }}{{ end }}{{ end }}",
    )
    .unwrap();
    let mut call = Message::text("assistant", "");
    call.tool_calls.push(ToolCall {
        id: "1".into(),
        name: "f".into(),
        arguments: serde_json::from_str(r#"{"b":1.0,"a":"<x>"}"#).unwrap(),
    });
    assert_eq!(
        template.render(&[call], ThinkMode::Unset).unwrap(),
        r#"f{"a":"\u003cx\u003e","b":1}a=<x>;b=1;"#
    );
}

#[test]
fn a_gap_is_filled_between_prompt_and_suffix() {
    let template = GoTemplate::parse("<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>").unwrap();
    assert!(template.uses("suffix") && !template.uses("messages"));
    assert_eq!(
        template.render_infill("a", "b", ThinkMode::Off).unwrap(),
        "<PRE>a<SUF>b<MID>"
    );
}

#[test]
fn what_go_cannot_parse_is_a_syntax_error_in_its_words() {
    for (source, expected) in [
        ("{{ .Prompt", "template: :1: unclosed action"),
        ("a\n{{ if .System }}b", "template: :2: unexpected EOF"),
        ("{{ end }}", "template: :1: unexpected {{end}}"),
        ("{{ else }}", "template: :1: unexpected {{else}}"),
        ("{{ }}", "template: :1: missing value for command"),
        ("{{ if }}a{{ end }}", "template: :1: missing value for if"),
        ("{{ range }}a{{ end }}", "template: :1: missing value for range"),
        ("{{ foo .Prompt }}", "template: :1: function \"foo\" not defined"),
        ("{{ \"a }}", "template: :1: unterminated quoted string"),
        ("{{ (.Prompt }}", "template: :1: unclosed left paren"),
        ("{{ .Prompt) }}", "template: :1: unexpected right paren"),
        ("{{ $x.Y }}", "template: :1: undefined variable \"$x\""),
        (
            "{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}",
            "template: :1: undefined variable \"$x\"",
        ),
        ("{{ break }}", "template: :1: {{break}} outside {{range}}"),
        ("{{ messages[0] }}", "template: :1: bad character U+005B '['"),
        ("{{ .A & .B }}", "template: :1: unexpected \"&\" in operand"),
        ("{{ § }}", "template: :1: unrecognized character in action: U+00A7 '§'"),
        (
            "{{ .A | 1 }}",
            "template: :1: non executable command in pipeline stage 2",
        ),
        (
            "\n{{ if .A }}{{ else }}{{ else }}{{ end }}",
            "template: :2: expected end; found {{else}}",
        ),
        ("{{/* a }}", "template: :1: unclosed comment"),
        ("{{ /* a */}}", "template: :1: unexpected \"/\" in command"),
        ("{{ 1x }}", "template: :1: bad number syntax: \"1x\""),
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, TemplateError::Syntax(_)), "{source}: {error}");
        assert_eq!(error.to_string(), expected, "{source}");
    }
}

#[test]
fn what_is_not_understood_or_not_there_is_named() {
    for (source, part) in [
        ("{{ html .Prompt }}", "function \"html\""),
        ("{{ define \"x\" }}{{ end }}", "define"),
        ("{{ printf \"%x\" 1 }}", "printf's %x"),
        ("{{ range .Messages }}{{ . }}{{ end }}", "printing an object"),
        ("{{ 'a' }}", "a character constant"),
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, TemplateError::Unsupported(_)), "{source}: {error}");
        assert!(error.to_string().contains(part), "{source}: {error}");
    }
    for (source, part) in [
        ("{{ range .Messages }}{{ .Nope }}{{ end }}", "can't evaluate field Nope"),
        ("{{ .A.B }}", "nil pointer evaluating interface {}.B"),
        ("{{ index .Messages 5 }}", "index out of range: 5"),
        ("{{ slice .Messages 2 1 }}", "invalid slice index"),
        ("{{ range .System }}{{ end }}", "range can't iterate"),
        ("{{ eq .System 1 }}", "incompatible types"),
        ("{{ len nil }}", "no length"),
        ("{{ $x = 1 }}", "undefined variable: $x"),
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, TemplateError::Execution(_)), "{source}: {error}");
        assert!(error.to_string().contains(part), "{source}: {error}");
    }
}

#[test]
fn nesting_work_and_length_are_bounded() {
    let deep = "{{ if .System }}".repeat(10_000);
    assert!(matches!(render(&deep), Err(TemplateError::Unsupported(_))));
    let wide = format!("{}x{}", "{{ range $.Messages }}".repeat(30), "{{ end }}".repeat(30));
    assert_eq!(render(&wide), Err(TemplateError::TooLong));
    let parentheses = format!("{{{{ {}.System{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    assert!(matches!(render(&parentheses), Err(TemplateError::Unsupported(_))));
    let doubling = format!("{{{{ $x := \"xx\" }}}}{}", "{{ $x = print $x $x }}".repeat(60));
    assert_eq!(render(&doubling), Err(TemplateError::TooLong));
    assert_eq!(render("{{ range 9000000000 }}{{ end }}"), Err(TemplateError::TooLong));
    let many: String = (0..300).map(|at| format!("{{{{ $v{at} := 1 }}}}")).collect();
    assert!(matches!(render(&many), Err(TemplateError::Unsupported(_))));
    let template = GoTemplate::parse("{{ range 1000 }}{{ if eq $.Prompt $.Prompt }}{{ end }}{{ end }}").unwrap();
    let long = [Message::text("user", "x".repeat(1 << 20))];
    assert_eq!(template.render(&long, ThinkMode::Unset), Err(TemplateError::TooLong));
    let chain = "{{ if .A }}".to_owned() + &"{{ else if .A }}".repeat(1000) + "{{ end }}";
    assert_eq!(render(&chain).as_deref(), Ok(""), "a long chain is no nesting");
}

/// The shape of today's templates in Ollama's library: tools that may be there, the last turn left open, an older part
/// for requests without messages.
#[test]
fn a_template_of_today_leaves_the_last_turn_open() {
    let template = GoTemplate::parse(
        r#"{{- if .Messages }}
{{- if or .System .Tools }}<|im_start|>system
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}
# Tools
{{- range .Tools }}
{"type": "function", "function": {{ json .Function }}}
{{- end }}
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}
{{- else }}{{ .Prompt }}{{ end }}{{ .Response }}{{ if .Response }}<|im_end|>{{ end }}"#,
    )
    .unwrap();
    let conversation = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")];
    assert_eq!(
        template.render(&turns(&conversation), ThinkMode::Unset).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    );
    let begun = turns(&[("user", "a"), ("assistant", "b")]);
    assert_eq!(
        template.render(&begun, ThinkMode::Unset).unwrap(),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"
    );
}
