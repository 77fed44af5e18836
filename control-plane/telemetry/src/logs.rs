//! Structured lines on standard error.

use std::io::{self, IsTerminal as _, Write};

use anyhow::{Context as _, bail};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn};

use crate::Options;
use crate::encode::{Style, encode};

/// Libraries whose chatter (or whose debug output, which shows what they carry) never belongs in our log unless
/// `ROADSTEAD_LOG` names them. The SDK's own errors stay: they are how one learns that a collector is away.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,tower=warn,tower_http=warn,tonic=warn,reqwest=warn,\
    rustls=warn,sqlx=warn,sea_orm=warn,sea_orm_migration=warn,rmcp=warn,genai=warn,a2a=warn,a2a_server=warn,\
    opentelemetry=error,opentelemetry_sdk=error,opentelemetry-otlp=error,opentelemetry-prometheus=error";

/// Lines that wait for standard error. At about 300 bytes a line this is well under a mebibyte; beyond it lines
/// are dropped, because waiting would let a stuck reader stop an engine.
const QUEUE: usize = 2048;

/// Writes out what is queued when dropped (the appender bounds that to about a second).
#[derive(Debug)]
pub(crate) struct Guard(#[expect(dead_code, reason = "held for its Drop")] WorkerGuard);

#[derive(Debug)]
pub(crate) struct LogOptions {
    filter: EnvFilter,
    style: Style,
}

impl LogOptions {
    pub(crate) fn from_env(options: &Options, env: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let wanted = env("ROADSTEAD_LOG").filter(|v| !v.trim().is_empty());
        let filter = filter(wanted.as_deref().unwrap_or(options.filter))?;
        let text = match env("ROADSTEAD_LOG_FORMAT").as_deref() {
            None | Some("") => options.text,
            Some("json") => false,
            Some("text") => true,
            Some(other) => bail!("ROADSTEAD_LOG_FORMAT: expected `json` or `text`, found `{other}`"),
        };
        let style = if text && io::stderr().is_terminal() {
            Style::Text
        } else {
            Style::Json
        };
        Ok(Self { filter, style })
    }
}

fn filter(wanted: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder()
        .with_regex(false)
        .parse(format!("{QUIET},{wanted}"))
        .with_context(|| {
            format!("ROADSTEAD_LOG: cannot read the filter `{wanted}` (example: info,roadstead_engine=debug)")
        })
}

pub(crate) fn start(
    service: &'static str,
    options: LogOptions,
    tracer: Option<&SdkTracerProvider>,
) -> anyhow::Result<Guard> {
    let (queue, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    let subscriber = tracing_subscriber::registry();
    match tracer {
        // One filter for everything: a disabled call site costs one load.
        None => subscriber
            .with(options.filter)
            .with(lines(options.style, queue))
            .try_init(),
        // The trace shows our own spans whatever the log shows; spans of libraries would only blur it.
        Some(provider) => {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(service))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(|meta| {
                    meta.is_span() && *meta.level() <= Level::INFO && meta.target().starts_with("roadstead")
                }));
            subscriber
                .with(spans)
                .with(lines(options.style, queue).with_filter(options.filter))
                .try_init()
        }
    }
    .context("telemetry was already started in this process")?;
    Ok(Guard(guard))
}

fn lines<S>(style: Style, queue: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let writer = Encoded { style, queue };
    match style {
        Style::Text => tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(writer)
            .boxed(),
        Style::Json => tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(WithTrace(
                tracing_subscriber::fmt::format()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false),
            ))
            .with_writer(writer)
            .boxed(),
    }
}

/// JSON events that carry the trace they belong to, when one is active.
struct WithTrace(Format<Json>);

impl<S> FormatEvent<S, JsonFields> for WithTrace
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    Format<Json>: FormatEvent<S, JsonFields>,
    for<'w> JsonFields: FormatFields<'w>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let context = opentelemetry::Context::current();
        let span = context.span();
        let ids = span.span_context();
        if !ids.is_valid() {
            return self.0.format_event(ctx, writer, event);
        }
        let mut line = String::with_capacity(256);
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        let body = line.trim_end().strip_suffix('}').unwrap_or(&line);
        writeln!(
            writer,
            "{body},\"trace_id\":\"{}\",\"span_id\":\"{}\"}}",
            ids.trace_id(),
            ids.span_id()
        )
    }
}

/// Passes finished lines on, encoded. The formatter hands over one whole event per `write_all`.
#[derive(Clone, Debug)]
struct Encoded {
    style: Style,
    queue: NonBlocking,
}

impl<'a> MakeWriter<'a> for Encoded {
    type Writer = Self;
    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

impl Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(line) => self.queue.write_all(encode(line, self.style).as_bytes())?,
            // The formatter writes strings only; should that change, nothing raw gets through.
            Err(_) => self
                .queue
                .write_all(encode(&String::from_utf8_lossy(bytes), self.style).as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.queue.flush()
    }
}

/// One structured line per panic, in place of the standard hook's several unstructured ones.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("a panic without a message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(target: "panic", place, thread, "panic: {message}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn noisy_crates_are_quiet_unless_named() {
        let text = filter("debug").unwrap().to_string();
        assert!(text.contains("h2=warn") && text.contains("debug"), "{text}");
        let text = filter("debug,h2=trace").unwrap().to_string();
        assert!(text.contains("h2=trace") && !text.contains("h2=warn"), "{text}");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let env = |n: &str| (n == "ROADSTEAD_LOG").then(|| "info,=,=".to_owned());
        let error = LogOptions::from_env(&Options::default(), env)
            .unwrap_err()
            .to_string();
        assert!(error.contains("ROADSTEAD_LOG"), "{error}");
        let env = |n: &str| (n == "ROADSTEAD_LOG_FORMAT").then(|| "xml".to_owned());
        let error = LogOptions::from_env(&Options::default(), env)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected `json` or `text`, found `xml`"),
            "{error}"
        );
    }

    #[test]
    fn without_a_terminal_lines_are_json_even_when_text_is_asked() {
        let options = LogOptions::from_env(
            &Options {
                text: true,
                ..Options::default()
            },
            none,
        )
        .unwrap();
        assert!(options.style == Style::Json || io::stderr().is_terminal());
    }
}
