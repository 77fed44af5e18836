//! Telemetry is one per process, so every case runs in a process of its own: this binary starts itself again
//! with `CASE` set, and [`child`] plays that case.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; the child reports on its standard output"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    metrics_service_server::{MetricsService, MetricsServiceServer},
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use roadstead_telemetry::{Options, Telemetry, label, meter, propagate};
use serde_json::Value;
use tokio::sync::mpsc;

const REMOTE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Not a test of its own: the other half of the tests below.
#[test]
fn child() {
    let Ok(case) = std::env::var("CASE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let telemetry = Telemetry::start("roadstead-probe", &Options::server()).unwrap();
        match case.as_str() {
            "hostile" => hostile(),
            "flood" => flood().await,
            "work" => work().await,
            "panic" => drop(std::thread::spawn(|| panic!("out of\nrope")).join()),
            other => panic!("no case {other}"),
        }
        for name in threads() {
            println!("thread {name}");
        }
        println!("{}", telemetry.metrics_text());
        let started = Instant::now();
        telemetry.shutdown().await;
        println!("shutdown {}", started.elapsed().as_millis());
    });
}

/// The names of this process's threads, once the log's has given itself its own (a thread begins with its parent's).
fn threads() -> Vec<String> {
    let begun = Instant::now();
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let comm = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        let names: Vec<_> = tasks.map(|task| comm(task).trim().to_owned()).collect();
        if names.iter().any(|name| name.starts_with("log")) || begun.elapsed() > Duration::from_secs(5) {
            return names;
        }
        std::thread::yield_now();
    }
}

fn hostile() {
    let name = "x\r\n{\"level\":\"INFO\",\"message\":\"forged\"}\u{1b}[2J\u{9b}31m";
    let span = tracing::info_span!("request", tenant.id = name);
    let _entered = span.enter();
    tracing::info!(agent.name = name, "hello {name}");
    tracing::debug!("below the default level");
}

async fn flood() {
    for n in 0..20_000_u32 {
        tracing::info_span!(target: "roadstead_probe", "turn", n)
            .in_scope(|| tracing::info!("line {n} {}", "x".repeat(200)));
    }
    tokio::task::yield_now().await;
}

async fn work() {
    let span =
        tracing::info_span!(target: "roadstead_probe", "work", otel.kind = "server", cluster.id = "east");
    propagate::within(span, propagate::from_traceparent(REMOTE), async {
        tracing::info!("inside");
        println!("traceparent {}", propagate::traceparent().unwrap_or_default());
    })
    .await;
    meter("probe")
        .u64_counter("reconciles")
        .build()
        .add(2, &[label("outcome", "ok")]);
}

fn spawn(case: &str, vars: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["child", "--exact", "--nocapture"])
        .env_clear()
        .env("CASE", case);
    command
        .envs(vars.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Standard output and the JSON lines of standard error.
fn run(case: &str, vars: &[(&str, &str)]) -> (String, Vec<Value>) {
    let output = spawn(case, vars).wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{out}\n{err}");
    let lines = err
        .lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect();
    (out, lines)
}

fn shutdown_ms(out: &str) -> u64 {
    let line = out
        .lines()
        .find_map(|l| l.strip_prefix("shutdown "))
        .expect("the child reports its shutdown");
    line.trim().parse().unwrap()
}

#[test]
fn s90_hostile_values_stay_one_json_line() {
    let (_, lines) = run("hostile", &[]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["target"], "process");
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    assert!(
        line["message"].as_str().unwrap().starts_with("hello x\r\n{"),
        "{line}"
    );
    assert!(
        line["agent.name"].as_str().unwrap().ends_with("\u{9b}31m"),
        "{line}"
    );
    assert_eq!(line["spans"][0]["name"], "request");
    assert_eq!(line.get("trace_id"), None);
}

#[test]
fn a_panic_is_one_structured_line() {
    let (_, lines) = run("panic", &[]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["target"], "panic");
    assert_eq!(lines[0]["message"], "panic: out of\nrope");
    assert!(
        lines[0]["place"].as_str().unwrap().contains("process.rs"),
        "{}",
        lines[0]
    );
}

#[test]
fn without_variables_no_exporter_runs_but_metrics_and_context_do() {
    let (out, _) = run("work", &[]);
    assert!(!out.contains("thread OpenTelemetry"), "{out}");
    assert!(out.contains("thread log"), "{out}");
    assert!(
        out.contains("reconciles_total{") && out.contains("outcome=\"ok\""),
        "{out}"
    );
    assert!(out.contains(&format!("traceparent {REMOTE}")), "{out}");
    assert!(shutdown_ms(&out) < 100, "{out}");
}

#[test]
fn the_sdk_switch_is_respected() {
    let (out, _) = run(
        "work",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
            ("OTEL_SDK_DISABLED", "true"),
        ],
    );
    assert!(!out.contains("thread OpenTelemetry"), "{out}");
}

#[test]
fn an_unusable_configuration_is_said_and_does_not_stop_the_service() {
    let (out, lines) = run(
        "work",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ],
    );
    assert!(!out.contains("thread OpenTelemetry"), "{out}");
    let said = lines.iter().filter(|l| l["level"] == "WARN").count();
    assert_eq!(said, 2, "one line for traces, one for metrics: {lines:?}");
}

#[test]
fn a_reader_that_never_reads_does_not_stop_the_process() {
    let mut child = spawn("flood", &[]);
    let mut out = String::new();
    let _unread = child.stderr.take().unwrap();
    let started = Instant::now();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(child.wait().unwrap().success(), "{out}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "took {:?}",
        started.elapsed()
    );
    assert!(out.contains("shutdown "), "{out}");
}

#[test]
fn a_collector_that_never_answers_does_not_stop_the_process() {
    // Accepts connections into its backlog and says nothing, ever.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut child = spawn(
        "flood",
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ("ROADSTEAD_LOG", "off")],
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let shutdown = lines
        .find_map(|l| l.unwrap().strip_prefix("shutdown ").map(str::to_owned))
        .unwrap();
    let shutdown: u64 = shutdown.trim().parse().unwrap();
    assert!(shutdown < 2500, "the flush took {shutdown} ms");
    drop(lines);
    let started = Instant::now();
    child.wait().unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "the process lingered for {:?}",
        started.elapsed()
    );
}

#[derive(Clone)]
struct Sink {
    spans: mpsc::UnboundedSender<ExportTraceServiceRequest>,
    metrics: mpsc::UnboundedSender<ExportMetricsServiceRequest>,
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.spans.send(request.into_inner()).unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Sink {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.metrics.send(request.into_inner()).unwrap();
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// The child has ended, so what it sent is here or never comes.
async fn within<T>(lines: &[Value], received: impl Future<Output = Option<T>>) -> T {
    let received = tokio::time::timeout(Duration::from_secs(5), received).await;
    received
        .ok()
        .flatten()
        .unwrap_or_else(|| panic!("nothing was exported; the child said {lines:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_metrics_reach_a_collector_and_logs_name_the_trace() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (spans, mut got_spans) = mpsc::unbounded_channel();
    let (metrics, mut got_metrics) = mpsc::unbounded_channel();
    let sink = Sink { spans, metrics };
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(sink.clone()))
            .add_service(MetricsServiceServer::new(sink))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let vars = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.clone()),
        ("OTEL_SERVICE_NAME", "renamed".to_owned()),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test".to_owned(),
        ),
    ];
    let (out, lines) =
        tokio::task::spawn_blocking(move || run("work", &vars.each_ref().map(|(k, v)| (*k, v.as_str()))))
            .await
            .unwrap();

    let request = within(&lines, got_spans.recv()).await;
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    let attribute = |key: &str| {
        resource
            .attributes
            .iter()
            .find(|a| a.key == key)
            .map(|a| format!("{:?}", a.value))
    };
    assert!(
        attribute("service.name").unwrap().contains("renamed"),
        "{resource:?}"
    );
    assert!(
        attribute("deployment.environment.name").unwrap().contains("test"),
        "{resource:?}"
    );
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(span.name, "work");
    assert_eq!(
        span.trace_id,
        0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes()
    );
    assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert!(span.attributes.iter().any(|a| a.key == "cluster.id"), "{span:?}");

    let request = within(&lines, got_metrics.recv()).await;
    let names: Vec<_> = request.resource_metrics[0]
        .scope_metrics
        .iter()
        .flat_map(|s| &s.metrics)
        .map(|m| &m.name)
        .collect();
    assert_eq!(names, ["reconciles"]);

    let inside = lines.iter().find(|l| l["message"] == "inside").unwrap();
    assert_eq!(inside["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    let own_span: String = span.span_id.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(inside["span_id"], own_span.as_str());
    assert!(
        out.contains(&format!(
            "traceparent 00-0af7651916cd43dd8448eb211c80319c-{own_span}-01"
        )),
        "{out}"
    );
}

/// A real collector (PyPI `rotel`), which prints what it receives. `None` when this machine has none and need not.
struct Rotel {
    process: Child,
    url: String,
    folder: std::path::PathBuf,
}

impl Rotel {
    fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("ROADSTEAD_TEST_ROTEL") else {
            assert!(
                std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
                "ROADSTEAD_TEST_ROTEL is not set"
            );
            println!("left out: ROADSTEAD_TEST_ROTEL is not set (see tests/tools/install)");
            return None;
        };
        let folder = std::env::temp_dir().join(format!("roadstead-rotel-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // Rotel cannot choose its ports itself: ask for free ones, and again when somebody was quicker.
        for _ in 0..5 {
            let ports = [free_port(), free_port()];
            let address = |n: usize| format!("127.0.0.1:{}", ports[n]);
            let mut process = Command::new(&program)
                .args([
                    "start",
                    "--exporter",
                    "blackhole",
                    "--debug-log-verbosity",
                    "detailed",
                ])
                .args([
                    "--debug-log",
                    "traces",
                    "--debug-log",
                    "metrics",
                    "--disable-batching",
                ])
                .args([
                    "--otlp-grpc-endpoint",
                    &address(0),
                    "--otlp-http-endpoint",
                    &address(1),
                ])
                .stdin(Stdio::null())
                .stdout(std::fs::File::create(folder.join("out")).unwrap())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let answers = wait(|| {
                process.try_wait().unwrap().is_some() || std::net::TcpStream::connect(address(0)).is_ok()
            });
            if answers && process.try_wait().unwrap().is_none() {
                return Some(Self {
                    process,
                    url: format!("http://{}", address(0)),
                    folder,
                });
            }
        }
        panic!("rotel did not start");
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(self.folder.join("out")).unwrap()
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Polls until `done` or for ten seconds.
fn wait(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if done() {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    false
}

#[test]
fn a_real_collector_understands_what_is_exported() {
    let Some(rotel) = Rotel::start() else { return };
    run("work", &[("OTEL_EXPORTER_OTLP_ENDPOINT", &rotel.url)]);
    let wanted = [
        "service.name: Str(roadstead-probe)",
        "Trace ID       : 0af7651916cd43dd8448eb211c80319c",
        "Parent ID      : b7ad6b7169203331",
        "Name           : work",
        "cluster.id: Str(east)",
        "Name: reconciles",
        "outcome: Str(ok)",
    ];
    let missing = |text: &str| {
        wanted
            .into_iter()
            .filter(|w| !text.contains(w))
            .collect::<Vec<_>>()
    };
    wait(|| missing(&rotel.printed()).is_empty());
    assert!(
        missing(&rotel.printed()).is_empty(),
        "{:?} not in {}",
        missing(&rotel.printed()),
        rotel.printed()
    );
}
