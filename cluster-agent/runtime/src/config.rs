//! What a local runtime is told when it opens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The variables of the cluster agent's own environment that engines get: where programs and certificates are, how
/// the network is reached, what is logged and where telemetry goes. `OTEL_EXPORTER_OTLP_HEADERS` is not among them:
/// it holds credentials, and an environment is readable by the user's other processes.
pub const INHERITED: [&str; 33] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "ROADSTEAD_LOG",
    "RUST_BACKTRACE",
    "OTEL_SDK_DISABLED",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];

/// Reads a variable of the cluster agent's environment; a parameter so that tests need not change a process's own.
pub type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;
/// Milliseconds since the Unix epoch, UTC.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// See the fields.
#[derive(Clone)]
pub struct Config {
    /// The program `roadstead-engine`; see [`find_engine`].
    pub engine: PathBuf,
    /// The runtime's own folder; made with mode 0700 if it is not there.
    pub state: PathBuf,
    /// Variables whose values documents may have.
    pub offered: BTreeSet<String>,
    /// Set for every engine, over what it inherits.
    pub environment: BTreeMap<String, String>,
    pub lookup: Lookup,
    pub clock: Clock,
    pub timing: Timing,
}

/// Deadlines. The defaults are for real engines.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the start of a process to its address.
    pub start: Duration,
    /// From a revision sent to its answer.
    pub answer: Duration,
    /// What running tasks get when their engine is to end.
    pub grace: Duration,
    /// Between two looks at the memory of engines with a limit.
    pub memory: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            memory: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// With the process's own environment and clock; no variable is offered.
    #[must_use]
    pub fn new(engine: PathBuf, state: PathBuf) -> Self {
        Self {
            engine,
            state,
            offered: BTreeSet::new(),
            environment: BTreeMap::new(),
            lookup: Arc::new(|name| std::env::var(name).ok()),
            clock: Arc::new(now),
            timing: Timing::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("engine", &self.engine)
            .field("state", &self.state)
            .field("offered", &self.offered)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the runtime's clock is the system's"
)]
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Why a runtime cannot open.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no engine at {path}: set ROADSTEAD_ENGINE to the roadstead-engine program")]
    NoEngine { path: PathBuf },
    #[error("the runtime's folder {path} cannot be used")]
    State {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The engine's program: `named` (the value of `ROADSTEAD_ENGINE`), else `roadstead-engine` beside the current
/// executable.
///
/// # Errors
/// [`ConfigError::NoEngine`] when there is no such file.
pub fn find_engine(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let beside = || {
        let current = std::env::current_exe().unwrap_or_default();
        current.with_file_name("roadstead-engine")
    };
    let path = named.map_or_else(beside, Path::to_path_buf);
    if path.is_file() {
        path.canonicalize().map_err(|_| ConfigError::NoEngine { path })
    } else {
        Err(ConfigError::NoEngine { path })
    }
}
