// Calls a daemon with Ollama's Go package, which the ollama command uses as well.
//
//	go-client HOST CHAT TOOLS EMBEDDER PULL
//
// CHAT, TOOLS and EMBEDDER are the names of models that must exist: one for chats, one with tools and reasoning, and one for
// embeddings. PULL is pulled first and deleted at the end. Prints `ok CHECK` lines and exits non-zero at the first check that
// fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
)

const (
	question = "Explain in one sentence what gravity is."
	call     = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"CITY\"}}\n</tool_call>"
	thought  = "<think>\nThe user asks about CITY.\n</think>\n\nIt is sunny."
	tool     = `{"type":"function","function":{"name":"get_weather","description":"Weather of a city",
		"parameters":{"type":"object","required":["city"],"properties":{"city":{"type":"string"}}}}}`
)

var (
	ctx     = context.Background()
	options = map[string]any{"temperature": 0, "seed": 1, "num_predict": 40}
	asked   = []api.Message{{Role: "user", Content: question}}
)

// history returns a conversation in which every question has this answer, followed by one more question. At temperature 0, a
// small model repeats the pattern of its history.
func history(answer string) []api.Message {
	var messages []api.Message
	for _, city := range []string{"Rome", "Oslo", "Bern", "Lima", "Cairo"} {
		messages = append(messages,
			api.Message{Role: "user", Content: "Weather in " + city + "?"},
			api.Message{Role: "assistant", Content: strings.ReplaceAll(answer, "CITY", city)})
	}
	return append(messages, api.Message{Role: "user", Content: "Weather in Paris?"})
}

func check(name string, body func() error) {
	if err := body(); err != nil {
		fmt.Fprintf(os.Stderr, "failed %s: %v\n", name, err)
		os.Exit(1)
	}
	fmt.Println("ok", name)
}

// expect returns an error with `seen` unless the condition holds.
func expect(condition bool, seen any) error {
	if condition {
		return nil
	}
	return fmt.Errorf("not so: %+v", seen)
}

func isAboutGravity(text string) bool {
	return strings.Contains(text, "force") || strings.Contains(strings.ToLower(text), "gravity")
}

// chatted returns an answer that is assembled from its frames.
func chatted(client *api.Client, request *api.ChatRequest) (answer api.ChatResponse, err error) {
	var content, thinking strings.Builder
	var calls []api.ToolCall
	err = client.Chat(ctx, request, func(frame api.ChatResponse) error {
		content.WriteString(frame.Message.Content)
		thinking.WriteString(frame.Message.Thinking)
		calls = append(calls, frame.Message.ToolCalls...)
		answer = frame
		return nil
	})
	if err == nil && !answer.Done {
		err = errors.New("the last frame is not done")
	}
	answer.Message.Content, answer.Message.Thinking, answer.Message.ToolCalls = content.String(), thinking.String(), calls
	return answer, err
}

func listed(client *api.Client, name string) (found *api.ListModelResponse, err error) {
	list, err := client.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, entry := range list.Models {
		if entry.Name == name {
			found = &entry
		}
	}
	return found, nil
}

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: go-client HOST CHAT TOOLS EMBEDDER PULL")
		os.Exit(2)
	}
	base, err := url.Parse(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	chat, tools, embedder, pull := os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	client := api.NewClient(base, &http.Client{Timeout: 5 * time.Minute})
	think := &api.ThinkValue{Value: true}

	// The ollama command sends HEAD / before anything else (trap 18).
	check("heartbeat", func() error { return client.Heartbeat(ctx) })

	// Clients compare versions and reject 0.0.0 (trap 17).
	check("version", func() error {
		version, err := client.Version(ctx)
		return errors.Join(err, expect(version != "" && version != "0.0.0", version))
	})

	// The ollama command waits for the status success (trap 58).
	check("pull", func() error {
		var statuses []string
		err := client.Pull(ctx, &api.PullRequest{Model: pull}, func(frame api.ProgressResponse) error {
			statuses = append(statuses, frame.Status)
			return nil
		})
		if err != nil {
			return err
		}
		return expect(statuses[len(statuses)-1] == "success", statuses)
	})

	// Go parses timestamps strictly, and the ollama command shortens digests to 12 digits (traps 12, 13).
	check("list", func() error {
		entry, err := listed(client, chat)
		if err != nil || entry == nil {
			return errors.Join(err, expect(entry != nil, chat))
		}
		return expect(len(entry.Digest) == 64 && entry.Size > 0 && !entry.ModifiedAt.IsZero(), entry)
	})

	check("show", func() error {
		shown, err := client.Show(ctx, &api.ShowRequest{Name: chat})
		if err != nil {
			return err
		}
		return expect(shown.ModelInfo["general.architecture"] == "llama" && len(shown.Tensors) > 0, shown.Details)
	})

	// Go decodes durations as integers of nanoseconds (trap 10).
	check("chat streamed", func() error {
		answer, err := chatted(client, &api.ChatRequest{Model: chat, Messages: asked, Options: options})
		if err != nil {
			return err
		}
		return errors.Join(expect(isAboutGravity(answer.Message.Content), answer),
			expect(answer.EvalCount > 0 && answer.EvalDuration > 0 && answer.TotalDuration > 0, answer.Metrics))
	})

	// The ollama command sends the context of the last frame with the next prompt (trap 41).
	check("generate", func() error {
		var last api.GenerateResponse
		request := &api.GenerateRequest{Model: chat, Prompt: "Say hello.", Options: options}
		err := client.Generate(ctx, request, func(frame api.GenerateResponse) error {
			last = frame
			return nil
		})
		return errors.Join(err, expect(last.Done && len(last.Context) > 0, last))
	})

	// The package decodes arguments as an object (traps 7, 9).
	check("tools", func() error {
		var weather api.Tool
		if err := json.Unmarshal([]byte(tool), &weather); err != nil {
			return err
		}
		answer, err := chatted(client, &api.ChatRequest{
			Model: tools, Messages: history(call), Tools: api.Tools{weather}, Options: options,
		})
		if err != nil || len(answer.Message.ToolCalls) != 1 {
			return errors.Join(err, expect(false, answer))
		}
		city, _ := answer.Message.ToolCalls[0].Function.Arguments.Get("city")
		return expect(city == "Paris" && answer.DoneReason == "stop", answer)
	})

	check("thinking", func() error {
		answer, err := chatted(client, &api.ChatRequest{Model: tools, Messages: history(thought), Think: think, Options: options})
		return errors.Join(err, expect(strings.Contains(answer.Message.Thinking, "Paris"), answer))
	})

	check("structured output", func() error {
		answer, err := chatted(client, &api.ChatRequest{
			Model:    chat,
			Messages: []api.Message{{Role: "user", Content: "Was the film good? Answer in JSON."}},
			Format:   json.RawMessage(`{"type":"object","properties":{"good":{"type":"boolean"}},"required":["good"]}`),
			Options:  options,
		})
		if err != nil {
			return err
		}
		var film struct{ Good *bool }
		return errors.Join(json.Unmarshal([]byte(answer.Message.Content), &film), expect(film.Good != nil, answer))
	})

	check("embed", func() error {
		reply, err := client.Embed(ctx, &api.EmbedRequest{Model: embedder, Input: []string{"one", "two"}})
		if err != nil || len(reply.Embeddings) != 2 {
			return errors.Join(err, expect(false, reply))
		}
		var square float64
		for _, number := range reply.Embeddings[0] {
			square += float64(number) * float64(number)
		}
		return expect(len(reply.Embeddings[0]) == 384 && math.Abs(square-1) < 1e-3, square)
	})

	// The ollama command computes the share of the GPU and the remaining time (traps 53, 54, 55).
	check("loaded models", func() error {
		running, err := client.ListRunning(ctx)
		if err != nil {
			return err
		}
		for _, entry := range running.Models {
			if entry.Name == chat {
				return expect(entry.ExpiresAt.After(time.Now()) && entry.SizeVRAM <= entry.Size && entry.ContextLength > 0, entry)
			}
		}
		return expect(false, running)
	})

	check("alias created, copied and deleted", func() error {
		ignore := func(api.ProgressResponse) error { return nil }
		request := &api.CreateRequest{Model: "compat-go", From: chat, System: "You are a pirate."}
		if err := client.Create(ctx, request, ignore); err != nil {
			return err
		}
		if err := client.Copy(ctx, &api.CopyRequest{Source: "compat-go", Destination: "compat-go-copy"}); err != nil {
			return err
		}
		shown, err := client.Show(ctx, &api.ShowRequest{Model: "compat-go-copy"})
		if err != nil {
			return err
		}
		return errors.Join(expect(shown.System == "You are a pirate.", shown.System),
			client.Delete(ctx, &api.DeleteRequest{Model: "compat-go"}),
			client.Delete(ctx, &api.DeleteRequest{Model: "compat-go-copy"}))
	})

	// The ollama command pulls a model if the status is 404 (traps 19, 20).
	check("not found", func() error {
		_, err := client.Show(ctx, &api.ShowRequest{Model: "hf:nobody/nothing-GGUF:Q4_0"})
		var status api.StatusError
		return expect(errors.As(err, &status) && status.StatusCode == http.StatusNotFound && strings.Contains(err.Error(), "not found"), err)
	})

	check("delete", func() error {
		if err := client.Delete(ctx, &api.DeleteRequest{Name: pull}); err != nil {
			return err
		}
		entry, err := listed(client, pull)
		return errors.Join(err, expect(entry == nil, entry))
	})
}
