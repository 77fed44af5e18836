//! The program as an operator runs it: real processes, real exit codes.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use roadstead_store::testing::TestDatabase;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn hub(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead-hub"));
    command.args(arguments);
    for (name, _) in std::env::vars() {
        let ours = name.starts_with("ROADSTEAD_") || name.starts_with("OTEL_") || name == "DATABASE_URL";
        if ours {
            command.env_remove(name);
        }
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    hub(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A folder with a database in it that `create-tenant` has made.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.text("hub.db"))
    }

    fn with_tenant() -> Self {
        let place = Self::new();
        let made = run(&[
            "create-tenant",
            "acme",
            "--database",
            &place.url(),
            "--token-file",
            &place.text("token"),
        ]);
        assert!(made.status.success(), "{}", said(&made));
        place
    }
}

/// `serve`, until it is dropped.
struct Serve {
    process: Child,
    api: String,
    fleet: String,
    metrics: String,
    log: std::sync::mpsc::Receiver<Value>,
}

impl Serve {
    fn start(place: &Place, database: &[&str]) -> Self {
        let keys = place.text("keys");
        let mut arguments = vec![
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--fleet-listen",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
            "--keys",
            &keys,
        ];
        arguments.extend(database);
        let mut process = hub(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, log) = std::sync::mpsc::channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap_or_else(|_| json!({"text": line})));
            }
        });
        let mut serve = Self {
            process,
            api: String::new(),
            fleet: String::new(),
            metrics: String::new(),
            log,
        };
        let line = serve.wait_for(|line| line.to_string().contains("the hub serves"));
        let field = |name: &str| find(&line, name).unwrap();
        serve.api = format!("http://{}", field("listen"));
        serve.fleet = field("fleet");
        serve.metrics = format!("http://{}/metrics", field("metrics"));
        serve
    }

    fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) if wanted(&line) => return line,
                Ok(line) => seen.push(line.to_string()),
                Err(_) => panic!("the log has no such line:\n{}", seen.join("\n")),
            }
        }
    }

    fn stop(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.process.wait().unwrap().code()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A field of a log line, wherever the format puts it.
fn find(line: &Value, name: &str) -> Option<String> {
    match line {
        Value::Object(object) => object.iter().find_map(|(key, value)| match value {
            Value::String(text) if key == name => Some(text.clone()),
            Value::Number(number) if key == name => Some(number.to_string()),
            value => find(value, name),
        }),
        _ => None,
    }
}

async fn get(url: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(url).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn ask(serve: &Serve, token: &str, query: &str) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("{}/graphql", serve.api)).bearer_auth(token);
    let request = request.header("content-type", "application/json");
    let response = request
        .body(json!({"query": query}).to_string())
        .send()
        .await
        .unwrap();
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

#[test]
fn audit_verify_of_a_wrong_path_says_so_and_makes_nothing() {
    let place = Place::with_tenant();
    let good = run(&["audit", "verify", "--database", &place.url()]);
    assert_eq!(
        (code(&good), said(&good).as_str()),
        (Some(0), "acme: whole, 3 records\n")
    );

    let wrong = format!("{}-typo", place.url());
    let refused = run(&["audit", "verify", "--database", &wrong]);
    assert_eq!(code(&refused), Some(1));
    assert!(said(&refused).contains("no file"), "{}", said(&refused));
    assert!(!place.path("hub.db-typo").exists());

    fs::write(place.path("empty.db"), "").unwrap();
    let refused = run(&[
        "audit",
        "verify",
        "--database",
        &format!("sqlite:{}", place.text("empty.db")),
    ]);
    assert_eq!(code(&refused), Some(1));
    assert!(
        said(&refused).contains("expected the database of a hub"),
        "{}",
        said(&refused)
    );
    assert_eq!(
        fs::metadata(place.path("empty.db")).unwrap().len(),
        0,
        "nor is it migrated"
    );
}

#[tokio::test]
async fn audit_verify_of_a_tampered_log_is_exit_code_1() {
    let database = TestDatabase::sqlite();
    let place = Place::new();
    let made = run(&[
        "create-tenant",
        "acme",
        "--database",
        database.url(),
        "--token-file",
        &place.text("token"),
    ]);
    assert!(made.status.success(), "{}", said(&made));
    database
        .tamper("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
        .await;
    let broken = run(&["audit", "verify", "--database", database.url()]);
    assert_eq!(code(&broken), Some(1), "{}", said(&broken));
    assert!(
        said(&broken).contains("acme: BROKEN after 1 records: record 2 was changed"),
        "{}",
        said(&broken)
    );
}

#[test]
fn a_database_with_no_tenant_is_no_success() {
    let place = Place::new();
    let migrated = run(&["migrate", "--database", &format!("{}?mode=rwc", place.url())]);
    assert!(migrated.status.success(), "{}", said(&migrated));
    let mode = fs::metadata(place.path("hub.db")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    let refused = run(&["audit", "verify", "--database", &place.url()]);
    assert_eq!(code(&refused), Some(1));
    assert!(said(&refused).contains("no tenant"), "{}", said(&refused));
}

#[test]
fn create_tenant_makes_all_of_it_or_nothing() {
    let place = Place::with_tenant();
    let token = fs::metadata(place.path("token")).unwrap();
    assert_eq!(token.permissions().mode() & 0o777, 0o600);
    let again = run(&[
        "create-tenant",
        "acme",
        "--database",
        &place.url(),
        "--token-file",
        &place.text("token-2"),
    ]);
    assert_eq!(code(&again), Some(1));
    assert!(
        said(&again).contains("there is a tenant acme already"),
        "{}",
        said(&again)
    );
    assert!(!place.path("token-2").exists());
    let lost = run(&[
        "issue-owner-token",
        "acme",
        "--database",
        &place.url(),
        "--token-file",
        &place.text("token-3"),
    ]);
    assert!(lost.status.success(), "{}", said(&lost));
    assert!(
        fs::read_to_string(place.path("token-3"))
            .unwrap()
            .starts_with("rst_")
    );
    let database = fs::metadata(place.path("hub.db")).unwrap();
    assert_eq!(database.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_password_is_neither_printed_nor_taken_on_the_command_line() {
    let place = Place::new();
    let file = place.path("url");
    fs::write(&file, "postgresql://u:secretpw@h:notaport/db").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = run(&["migrate", "--database-file", &place.text("url")]);
    assert_eq!(code(&refused), Some(1));
    assert!(said(&refused).contains("not well-formed"), "{}", said(&refused));
    assert!(!said(&refused).contains("secretpw"), "{}", said(&refused));

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = run(&["migrate", "--database-file", &place.text("url")]);
    assert!(
        said(&refused).contains("expected a file that others cannot read"),
        "{}",
        said(&refused)
    );

    let refused = run(&["migrate", "--database", "postgres://u:secretpw@127.0.0.1:1/db"]);
    assert_eq!(code(&refused), Some(1));
    assert!(
        said(&refused).contains("use --database-file"),
        "{}",
        said(&refused)
    );
    assert!(!said(&refused).contains("secretpw"));
}

#[test]
fn dev_refuses_what_is_a_servers() {
    let place = Place::with_tenant();
    let state = place.text("state");
    for (name, value) in [
        ("ROADSTEAD_DATABASE", "postgres://h/d"),
        ("ROADSTEAD_DATABASE_FILE", "/etc/roadstead/database"),
        ("DATABASE_URL", "postgres://h/d"),
    ] {
        let refused = hub(&["dev", "--state", &state])
            .env(name, value)
            .output()
            .unwrap();
        assert_eq!(code(&refused), Some(1), "{name}");
        assert!(
            said(&refused).contains(&format!("{name} is set")),
            "{}",
            said(&refused)
        );
    }
    assert!(!Path::new(&state).exists(), "nothing was made");

    // A folder whose hub.db somebody else made.
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let folder = place.folder.path().display().to_string();
    let refused = run(&["dev", "--state", &folder]);
    assert_eq!(code(&refused), Some(1));
    assert!(
        said(&refused).contains("was not made by dev"),
        "{}",
        said(&refused)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_on_sqlite_serves_is_seen_and_stops() {
    let place = Place::with_tenant();
    let url = place.url();
    let token = fs::read_to_string(place.path("token")).unwrap();
    let serve = Serve::start(&place, &["--database", &url]);
    observed(&serve, &token).await;
    // Another hub on the same file is refused.
    let keys = place.text("keys");
    let second = run(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--fleet-listen",
        "127.0.0.1:0",
        "--keys",
        &keys,
        "--database",
        &url,
    ]);
    assert_eq!(code(&second), Some(1));
    assert!(
        said(&second).contains("another `roadstead-hub serve`"),
        "{}",
        said(&second)
    );
    let doctor = |keys: &str| {
        run(&[
            "doctor",
            "--database",
            &url,
            "--keys",
            keys,
            "--public-url",
            &serve.api,
            "--fleet",
            &serve.fleet,
        ])
    };
    let well = doctor(&keys);
    assert_eq!(code(&well), Some(0), "{}", said(&well));
    for what in [
        "migrations are up to date",
        "API asks for a token",
        "cluster agents' port",
        "room for the database",
    ] {
        assert!(said(&well).contains(what), "{}", said(&well));
    }
    fs::set_permissions(place.path("keys/ca-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let ill = doctor(&keys);
    assert_eq!(code(&ill), Some(1));
    assert!(
        said(&ill).contains("WRONG  ca-key.pem is private"),
        "{}",
        said(&ill)
    );
    assert_eq!(serve.stop(), Some(0));
    // Nobody is there: said, not hung.
    let gone = run(&["doctor", "--database", &url, "--public-url", "http://127.0.0.1:9"]);
    assert_eq!(code(&gone), Some(1));
    assert!(said(&gone).contains("WRONG  API lives"), "{}", said(&gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_on_postgresql_serves_and_stops() {
    let Some(database) = TestDatabase::postgres().await else {
        return;
    };
    let place = Place::new();
    let file = place.path("url");
    fs::write(&file, database.url()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let file = place.text("url");
    let made = run(&[
        "create-tenant",
        "acme",
        "--database-file",
        &file,
        "--token-file",
        &place.text("token"),
    ]);
    assert!(made.status.success(), "{}", said(&made));
    let token = fs::read_to_string(place.path("token")).unwrap();
    let serve = Serve::start(&place, &["--database-file", &file]);
    observed(&serve, &token).await;
    let well = run(&[
        "doctor",
        "--database-file",
        &file,
        "--keys",
        &place.text("keys"),
        "--public-url",
        &serve.api,
    ]);
    assert_eq!(code(&well), Some(0), "{}", said(&well));
    assert!(
        said(&well).contains("role and row-level security"),
        "{}",
        said(&well)
    );
    let whole = run(&["audit", "verify", "--database-file", &file]);
    assert_eq!(code(&whole), Some(0), "{}", said(&whole));
    assert_eq!(serve.stop(), Some(0));

    fs::write(place.path("owner"), database.owner_url()).unwrap();
    fs::set_permissions(place.path("owner"), fs::Permissions::from_mode(0o600)).unwrap();
    let ill = run(&["doctor", "--database-file", &place.text("owner")]);
    assert_eq!(code(&ill), Some(1));
    assert!(said(&ill).contains("owns tables"), "{}", said(&ill));
}

/// Health, one line for each request, and what is counted.
async fn observed(serve: &Serve, token: &str) {
    assert_eq!(
        get(&format!("{}/livez", serve.api)).await,
        (200, "ok\n".to_owned())
    );
    assert_eq!(
        get(&format!("{}/readyz", serve.api)).await,
        (200, "ok\n".to_owned())
    );
    let made = ask(
        serve,
        token,
        "mutation { createProject(input: {name: \"billing\"}) { errors { code } } }",
    )
    .await;
    assert_eq!(made["data"]["createProject"]["errors"], json!([]), "{made}");
    let line = serve
        .wait_for(|line| line.to_string().contains("\"answered\"") && line.to_string().contains("/graphql"));
    let text = line.to_string();
    assert_eq!(find(&line, "status").as_deref(), Some("200"), "{text}");
    assert!(find(&line, "took_ms").is_some(), "{text}");
    assert!(
        text.contains("token:tok_") && text.contains("ten_"),
        "who, as ids: {text}"
    );
    assert!(
        !text.contains("billing") && !text.contains("rst_"),
        "no content: {text}"
    );
    let refused = ask(serve, "rst_wrong", "{ viewer { tenant } }").await;
    assert_eq!(refused["code"], "UNAUTHENTICATED");

    let (status, metrics) = get(&serve.metrics).await;
    assert_eq!(status, 200);
    for (family, labels) in [
        (
            "http_server_request_duration_seconds_count",
            &["http_route=\"graphql\"", "status_code=\"200\""][..],
        ),
        (
            "roadstead_hub_graphql_operation_duration_seconds_count",
            &["kind=\"mutation\"", "outcome=\"ok\""],
        ),
        (
            "roadstead_hub_db_transaction_duration_seconds_count",
            &["access=\"write\"", "outcome=\"committed\""],
        ),
        ("roadstead_hub_audit_records_total", &["decision=\"allow\""]),
        (
            "roadstead_hub_authentication_refusals_total",
            &["reason=\"wrong\""],
        ),
        ("roadstead_hub_fleet_sessions_live", &[]),
    ] {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(family) && labels.iter().all(|l| line.contains(l)));
        let line = line.unwrap_or_else(|| panic!("no {family} {labels:?} in\n{metrics}"));
        let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(value >= 1.0 || family.ends_with("live"), "{line}");
    }
    for secret in [token, "acme", "billing", "tok_", "ten_"] {
        assert!(!metrics.contains(secret), "labels are enumerations: {secret}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let place = Place::with_tenant();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut process = hub(&[
        "serve",
        "--listen",
        &address,
        "--database",
        &place.url(),
        "--keys",
        &place.text("keys"),
    ])
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut text = String::new();
    process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(1));
    assert!(text.contains(&format!("listening on {address}")), "{text}");
}

fn roots(place: &Place, arguments: &[&str]) -> Output {
    let (url, keys) = (place.url(), place.text("keys"));
    let place = ["--database", &url, "--keys", &keys];
    run(&[&["roots"], arguments, &place].concat())
}

/// Repeats a step until it is taken, for as long as a replica needs to say what it works with.
fn roots_until_taken(place: &Place, arguments: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let done = roots(place, arguments);
        if code(&done) == Some(0) {
            return said(&done);
        }
        assert!(Instant::now() < deadline, "{}", said(&done));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn s49_a_running_hub_follows_the_operators_rotation() {
    let place = Place::with_tenant();
    let empty = place.text("empty");
    fs::create_dir(&empty).unwrap();
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o700)).unwrap();
    let url = place.url();
    let none = run(&["roots", "list", "--database", &url, "--keys", &empty]);
    assert_eq!(code(&none), Some(1));
    assert!(said(&none).contains("holds no root"), "{}", said(&none));
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "a look makes nothing");

    let serve = Serve::start(&place, &["--database", &url]);
    let list = || said(&roots(&place, &["list"]));
    assert!(list().contains("generation 0: one root"), "{}", list());
    for (step, expected) in [
        ("switch", "expected an announced root"),
        ("abort", "expected an announced root"),
        ("retire", "expected a root that signed before"),
    ] {
        let refused = roots(&place, &[step]);
        assert_eq!(code(&refused), Some(1), "{step}");
        assert!(said(&refused).contains(expected), "{}", said(&refused));
    }
    let first = fs::read(place.path("keys/ca.pem")).unwrap();
    roots_until_taken(&place, &["add"]);
    assert_eq!(
        fs::read(place.path("keys/ca.pem")).unwrap(),
        first,
        "the old one signs"
    );
    let again = roots(&place, &["add"]);
    assert!(said(&again).contains("expected one root"), "{}", said(&again));
    roots_until_taken(&place, &["abort"]);
    roots_until_taken(&place, &["add"]);
    serve.wait_for(|line| find(line, "generation").as_deref() == Some("3"));
    roots_until_taken(&place, &["switch"]);
    serve.wait_for(|line| find(line, "generation").as_deref() == Some("4"));
    roots_until_taken(&place, &["retire"]);
    serve.wait_for(|line| find(line, "generation").as_deref() == Some("5"));
    assert_ne!(fs::read(place.path("keys/ca.pem")).unwrap(), first);
    // The port shows the new root; the look from outside asks for exactly that.
    let keys = place.text("keys");
    let well = run(&[
        "doctor",
        "--database",
        &url,
        "--keys",
        &keys,
        "--fleet",
        &serve.fleet,
    ]);
    assert_eq!(code(&well), Some(0), "{}", said(&well));
    for what in [
        "roots of the fleet",
        "generation 5: one root",
        "replicas work with these roots",
        "certificates of clusters",
    ] {
        assert!(said(&well).contains(what), "{}", said(&well));
    }
    let log = said(&run(&["audit", "verify", "--database", &url]));
    // One record for the tenant itself, and one for each of the five steps.
    assert!(log.contains("roadstead-platform: whole, 6 records"), "{log}");
    let early = roots(&place, &["retire", "--now", "--keep-new"]);
    assert_eq!(code(&early), Some(1), "there is no newer root: {}", said(&early));
    let older = place.path("older");
    fs::create_dir(&older).unwrap();
    fs::set_permissions(&older, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(place.path("keys")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), older.join(entry.file_name())).unwrap();
    }
    // A key that somebody has may be used now: nobody is asked to wait.
    let now = roots(&place, &["retire", "--now"]);
    assert_eq!(code(&now), Some(0), "{}", said(&now));
    serve.wait_for(|line| find(line, "generation").as_deref() == Some("6"));
    assert!(
        said(&now).contains("unused join tokens that end: 0"),
        "{}",
        said(&now)
    );
    assert!(list().contains("compromised "), "{}", list());
    assert_eq!(serve.stop(), Some(0));
    // The folder of before would bring the retired root back.
    let older = older.display().to_string();
    let listen = ["--listen", "127.0.0.1:0", "--fleet-listen", "127.0.0.1:0"];
    let back = run(&[&["serve", "--database", &url, "--keys", &older], &listen[..]].concat());
    assert_eq!(code(&back), Some(1), "{}", said(&back));
    assert!(
        said(&back).contains("older copy of the folder"),
        "{}",
        said(&back)
    );
    assert_eq!(Serve::start(&place, &["--database", &url]).stop(), Some(0));
}
