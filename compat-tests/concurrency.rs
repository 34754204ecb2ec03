//! Parallel answers from one model: all of them progress, and none influences another.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::net::{AddressFamily, SocketType, sockopt::set_socket_recv_buffer_size};
use serde_json::{Value, json};

use crate::harness::{
    hubllama::{Hubllama, MODEL, Setup},
    raw_http::Connection,
    stream::{Stream, text_of},
};

/// Configuration with one compute thread, since the tests share the machine.
fn daemon(parallel: u32, context: u32) -> Hubllama {
    Setup::with_model()
        .config(&format!(
            "[engine]\nthreads = 1\nparallel = {parallel}\ncontext_length = {context}\n"
        ))
        .start()
}

fn generate(prompt: &str, tokens: u32) -> Value {
    json!({
        "model": MODEL, "prompt": prompt, "raw": true,
        "options": {"temperature": 0, "num_predict": tokens},
    })
}

/// Starts an answer that continues until the test ends it.
fn endless() -> Value {
    generate("1, 2, 3, 4, 5, 6,", 5000)
}

#[test]
fn eight_answers_advance_together_and_each_is_what_it_is_alone() {
    const TOKENS: u32 = 40;
    let prompts = [
        "1, 2, 3, 4, 5, 6,",
        "a b c d e f g",
        "Monday, Tuesday, Wednesday,",
        "January, February, March,",
        "2, 4, 6, 8, 10,",
        "10, 20, 30, 40, 50,",
        "one two three four five",
        "5, 10, 15, 20, 25,",
    ];
    let daemon = daemon(8, 512);
    let alone: Vec<String> = prompts
        .iter()
        .map(|prompt| text_of(&Stream::open(&daemon, "/api/generate", &generate(prompt, TOKENS)).rest()))
        .collect();

    // The counter increases with every frame of any stream.
    let clock = Arc::new(AtomicUsize::new(0));
    let start = Arc::new(Barrier::new(prompts.len()));
    let readers: Vec<_> = prompts
        .map(|prompt| {
            let (clock, start, address) = (Arc::clone(&clock), Arc::clone(&start), daemon.address());
            thread::spawn(move || {
                let connection = Connection::open(address);
                start.wait();
                let mut stream = Stream::on(connection, "/api/generate", &generate(prompt, TOKENS));
                let (mut frames, mut ticks) = (Vec::new(), Vec::new());
                while let Some(frame) = stream.frame() {
                    frames.push(frame);
                    ticks.push(clock.fetch_add(1, Ordering::SeqCst));
                }
                (frames, ticks)
            })
        })
        .into_iter()
        .collect();
    let read: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.join().expect("no panic"))
        .collect();
    for ((frames, _), alone) in read.iter().zip(&alone) {
        assert_eq!(frames.last().expect("a last frame")["eval_count"], TOKENS);
        assert_eq!(&text_of(frames), alone);
    }
    let first_end = read.iter().filter_map(|(_, ticks)| ticks.last()).min().expect("ends");
    for (_, ticks) in &read {
        assert!(
            ticks[1] < *first_end,
            "one waited for another's end: {ticks:?}, {first_end}"
        );
    }
}

#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let daemon = daemon(2, 2048);
    let mut running = Stream::open(&daemon, "/api/generate", &endless());
    running.frames(3);
    let seen = Arc::new(AtomicUsize::new(0));
    let reader = {
        let seen = Arc::clone(&seen);
        thread::spawn(move || {
            while running.frame().is_some_and(|frame| frame["done"] == false) {
                if seen.fetch_add(1, Ordering::SeqCst) == usize::MAX / 2 {
                    return;
                }
            }
        })
    };
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(150);
    let before = seen.load(Ordering::SeqCst);
    let mut other = Stream::open(&daemon, "/api/generate", &generate(&long, 3));
    other.frames(1);
    let between = seen.load(Ordering::SeqCst) - before;
    let last = other.rest();
    let tokens = last.last().expect("a last frame")["prompt_eval_count"].as_u64();
    assert!(tokens.is_some_and(|tokens| tokens > 1200), "{tokens:?}");
    assert!(between >= 5, "{between} frames while the prompt was read");
    // Dropping the daemon ends the endless answer.
    drop(daemon);
    reader.join().expect("no panic");
}

/// Opens a connection with the smallest receive buffer that the system allows.
fn narrow(daemon: &Hubllama) -> Connection {
    let socket: OwnedFd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    set_socket_recv_buffer_size(&socket, 2048).expect("a small buffer");
    rustix::net::connect(&socket, &daemon.address()).expect("the server listens");
    Connection::new(socket.into())
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody_and_loses_nothing() {
    const TOKENS: u32 = 1200;
    let daemon = daemon(2, 2048);
    let mut request = generate("1, 2, 3, 4, 5, 6,", TOKENS);
    // The frames of one kilobyte exceed all buffers between the model and the client.
    request["logprobs"] = true.into();
    request["top_logprobs"] = 20.into();
    let mut slow = Stream::on(narrow(&daemon), "/api/generate", &request);
    slow.frames(1);
    // Meanwhile other answers start and end, with more tokens in total than the slow one has.
    for _ in 0..4 {
        let frames = Stream::open(&daemon, "/api/generate", &generate("2, 4, 6, 8, 10,", 400)).rest();
        assert_eq!(frames.last().expect("a last frame")["eval_count"], 400);
    }
    let rest = slow.rest();
    assert_eq!(rest.last().expect("a last frame")["eval_count"], TOKENS);
    let text: String = rest.iter().filter_map(|frame| frame["response"].as_str()).collect();
    let numbers: Vec<u32> = text
        .split(", ")
        .skip(2)
        .take(100)
        .map(|number| number.trim().parse().expect("a number"))
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{text}");
}

#[test]
fn more_requests_than_slots_wait_for_their_turn_and_are_all_answered() {
    let daemon = daemon(2, 512);
    let mut streams: Vec<Stream> = (0..12)
        .map(|number| Stream::open(&daemon, "/api/generate", &generate(&format!("{number}, "), 5 + number)))
        .collect();
    for (number, stream) in (0..).zip(&mut streams) {
        let frames = stream.rest();
        let last = frames.last().expect("a last frame");
        assert_eq!(
            (&last["done"], &last["eval_count"]),
            (&true.into(), &(5 + number).into()),
            "{last}"
        );
    }
    assert_eq!(daemon.workers().len(), 1);
}

#[test]
fn a_prompt_that_a_running_answer_has_read_is_not_read_again() {
    let daemon = daemon(2, 4096);
    let question = "Count from one to ten thousand. ".repeat(60);
    let running = json!({
        "model": MODEL, "messages": [{"role": "user", "content": question}],
        "options": {"temperature": 0, "num_predict": 2000},
    });
    let mut running = Stream::open(&daemon, "/api/chat", &running);
    running.frame().expect("it generates");
    let request = json!({"model": MODEL, "input": question, "max_output_tokens": 1}).to_string();
    let (head, body) = daemon.request("POST", "/v1/responses", &request);
    assert_eq!(head.status(), 200, "{body}");
    let usage = &serde_json::from_str::<Value>(&body).expect("JSON")["usage"];
    let (all, cached) = (&usage["input_tokens"], &usage["input_tokens_details"]["cached_tokens"]);
    assert!(all.as_u64() > Some(400), "{usage}");
    // The last token of a prompt is always evaluated again.
    assert_eq!(cached.as_u64().map(|cached| cached + 1), all.as_u64(), "{usage}");
    running.frame().expect("it goes on");
}
