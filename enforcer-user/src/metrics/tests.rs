use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use common::abi;

use super::*;

#[derive(Default)]
struct Kernel {
    ready: AtomicBool,
    broken: bool,
}

impl KernelStats for Kernel {
    fn snapshot(&self) -> io::Result<KernelSnapshot> {
        if self.broken {
            return Err(io::Error::other("no such map"));
        }
        let mut reasons = vec![0; abi::REASON_STATS as usize];
        reasons[abi::reason_stat(Reason::NoRule as u16, true) as usize] = 7;
        let mut losses = vec![0; abi::LOSS_STATS as usize];
        losses[abi::LOSS_TELEMETRY_RING as usize] = 3;
        losses[abi::HELD as usize] = 11;
        let maps = vec![MapFill { name: "FLOWS".into(), entries: 5, max: 10 }];
        Ok(KernelSnapshot { reasons, losses, maps, sessions: 2, flows: 5, pus: 1, ..Default::default() })
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

fn metrics(kernel: Kernel) -> Arc<Metrics> {
    Arc::new(Metrics::new(Arc::new(kernel)).expect("metrics"))
}

#[test]
fn everything_counted_is_shown() {
    let metrics = metrics(Kernel::default());
    metrics.handshake(HandshakeKind::Hello, Reason::Allowed);
    metrics.handshake(HandshakeKind::Hello, Reason::ChainUntrusted);
    metrics.first_contact(Duration::from_micros(250));
    let text = metrics.render().expect("renders");
    for line in [
        "enforcer_handshakes_total{kind=\"hello\",result=\"allowed\"} 1",
        "enforcer_handshakes_total{kind=\"hello\",result=\"chain_untrusted\"} 1",
        "enforcer_handshakes_total{kind=\"judge\",result=\"allowed\"} 0",
        "enforcer_first_contact_seconds_bucket{le=\"0.0002\"} 0",
        "enforcer_first_contact_seconds_bucket{le=\"0.0003\"} 1",
        "enforcer_verdicts_total{reason=\"no_rule\",direction=\"in\"} 7",
        "enforcer_verdicts_total{reason=\"no_rule\",direction=\"out\"} 0",
        "enforcer_handshake_packets_total{type=\"deny\",direction=\"in\"} 0",
        "enforcer_losses_total{what=\"telemetry_ring\"} 3",
        "enforcer_held_frames_total 11",
        "enforcer_map_entries{map=\"FLOWS\"} 5",
        "enforcer_map_max_entries{map=\"FLOWS\"} 10",
        "enforcer_sessions 2",
        "enforcer_kernel_readable 1",
        "enforcer_ready 0",
    ] {
        assert!(text.lines().any(|shown| shown == line), "no line {line:?} in\n{text}");
    }
    let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).expect("memory");
    assert!(memory.parse::<f64>().expect("a number") > 1e5);
}

#[test]
fn an_unreadable_kernel_does_not_hide_the_rest() {
    let text = metrics(Kernel { broken: true, ..Default::default() }).render().expect("renders");
    assert!(text.contains("enforcer_kernel_readable 0\n") && text.contains("enforcer_build_info{"));
    assert!(!text.contains("enforcer_verdicts_total"));
}

#[test]
fn promtool_finds_nothing_to_say() {
    let metrics = metrics(Kernel::default());
    metrics.handshake(HandshakeKind::Judge, Reason::NoRule);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs; `apt-get install prometheus` has it");
    let mut stdin = promtool.stdin.take().expect("piped");
    stdin.write_all(metrics.render().expect("renders").as_bytes()).expect("written");
    drop(stdin);
    let output = promtool.wait_with_output().expect("ends");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_answers_what_it_should_and_nothing_else() {
    let server = MetricsServer::bind("127.0.0.1:0".parse().expect("address")).await.expect("binds");
    let address = server.local_addr().expect("bound");
    let busy = MetricsServer::bind(address).await.expect_err("taken");
    assert_eq!(
        busy.to_string(),
        format!(
            "cannot listen on {address} for metrics: address already in use; set another `metrics.listen`, or \"\" for none"
        )
    );
    let kernel = Arc::new(Kernel::default());
    let metrics = Arc::new(Metrics::new(kernel.clone()).expect("metrics"));
    let serving = tokio::spawn(server.serve(metrics));
    tokio::task::spawn_blocking(move || {
        let get = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        assert!(get("/readyz").starts_with("HTTP/1.1 503 "));
        kernel.ready.store(true, Ordering::Relaxed);
        assert!(get("/readyz").starts_with("HTTP/1.1 200 "));
        assert!(get("/healthz").starts_with("HTTP/1.1 200 "));
        assert!(get("/").starts_with("HTTP/1.1 404 "));
        let metrics = get("/metrics");
        assert!(metrics.starts_with("HTTP/1.1 200 ") && metrics.contains("version=0.0.4"));
        assert!(metrics.contains("\nenforcer_ready 1\n"));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(ask(address, post).starts_with("HTTP/1.1 405 "));
        assert!(ask(address, "\u{1}\u{2}\u{3}\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(8 << 10));
        assert!(ask(address, &long).starts_with("HTTP/1.1 4"), "an endless head is cut off");
        // Silent connections up to the limit, and beyond it: the endpoint comes back.
        let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address).expect("connects")).collect();
        drop(silent);
        std::thread::sleep(Duration::from_millis(100));
        assert!(get("/healthz").starts_with("HTTP/1.1 200 "));
    })
    .await
    .expect("the test");
    serving.abort();
}
