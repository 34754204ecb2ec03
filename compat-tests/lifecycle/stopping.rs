//! Graceful and immediate stops of the daemon.

use std::net::TcpStream;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{ENDLESS, ENGINE, count, load};
use crate::harness::{
    hubllama::{MODEL, Setup, children, is_alive, send_signal, wait_until},
    raw_http::PATIENCE,
    stream::Stream,
};

#[test]
fn a_running_answer_is_finished_before_the_daemon_ends() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Setup::with_model().config(ENGINE).start();
        load(&daemon, MODEL);
        let mut stream = Stream::open(&daemon, "/api/generate", &count(MODEL, 100));
        stream.frames(2);
        let children = children(daemon.pid());
        send_signal(daemon.pid(), signal);
        let closed = wait_until(PATIENCE, || TcpStream::connect(daemon.address()).err().map(drop));
        assert!(closed.is_some(), "nothing new is begun");
        let rest = stream.rest();
        assert_eq!(rest.last().expect("a last frame")["eval_count"], 100);
        let status = daemon.ended().expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        assert!(children.iter().all(|&pid| !is_alive(pid)), "workers end before it");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut daemon = Setup::with_model().config(ENGINE).start();
    load(&daemon, MODEL);
    let mut stream = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    stream.frames(2);
    let children = children(daemon.pid());
    send_signal(daemon.pid(), Signal::TERM);
    let closed = wait_until(PATIENCE, || TcpStream::connect(daemon.address()).err().map(drop));
    assert!(closed.is_some());
    stream.frames(2);
    let status = daemon.end(Signal::TERM).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    stream.rest();
    assert!(!stream.whole, "the answer was cut, and that can be seen");
    assert!(children.iter().all(|&pid| !is_alive(pid)));
}

/// Sends SIGINT to a process group, as a terminal does on Ctrl-C.
#[test]
fn a_signal_to_the_whole_terminal_does_not_cut_running_answers() {
    let mut setup = Setup::with_model().config(ENGINE);
    setup.own_group = true;
    let mut daemon = setup.start();
    load(&daemon, MODEL);
    let mut stream = Stream::open(&daemon, "/api/generate", &count(MODEL, 60));
    stream.frames(2);
    let group = Pid::from_raw(daemon.pid()).expect("a process");
    kill_process_group(group, Signal::INT).expect("its group");
    let rest = stream.rest();
    assert_eq!(rest.last().expect("a last frame")["eval_count"], 60);
    assert_eq!(daemon.ended().expect("it ends").code(), Some(0));
}

#[test]
fn a_load_under_way_does_not_hold_up_a_quick_end() {
    let mut daemon = Setup::with_model().config(ENGINE).start();
    let _waiting = Stream::open(&daemon, "/api/generate", &count(MODEL, 1));
    let worker = super::loading_worker(&daemon);
    send_signal(worker, Signal::STOP);
    send_signal(daemon.pid(), Signal::TERM);
    let closed = wait_until(PATIENCE, || TcpStream::connect(daemon.address()).err().map(drop));
    assert!(closed.is_some());
    assert_eq!(daemon.end(Signal::TERM).expect("it ends").code(), Some(0));
    assert!(!is_alive(worker));
}
