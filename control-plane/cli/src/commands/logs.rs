//! `logs`: the engine's lines, as they come. A followed stream that breaks is taken up again where it was.

use super::get;
use crate::{
    api::LogLine,
    args::{Common, Format, Logs},
    client::Client,
    failure::{Exit, Failure, Outcome},
    render::{self, time},
    shell::Shell,
    socket::{Next, Subscription},
    text::line,
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    time::Duration,
};

/// The most lines of the past that the hub gives.
const MOST: u32 = 10_000;
/// Lines of the past where nobody says how many.
const TAIL: u32 = 100;
/// The longest pause before a stream is opened again; it begins with a fraction of it and doubles.
const LONGEST: Duration = Duration::from_secs(15);
const SHORTEST: Duration = Duration::from_millis(250);

pub(super) async fn run(client: &Client, common: &Common, args: &Logs, shell: &mut Shell) -> Outcome<()> {
    let mut reader = Reader {
        client,
        format: common.output,
        args,
        since: args.since.map_or(Value::Null, |since| since.value((shell.now)())),
        seen: Seen::default(),
        connected: false,
    };
    let mut pause = SHORTEST;
    let mut told = false;
    loop {
        let shown = reader.seen.count;
        let why = match reader.read(shell).await {
            Ok(End::Done) => return Ok(()),
            Ok(End::Complete) => "the log ended".to_owned(),
            Err(failure) if args.follow && reader.connected && failure.exit == Exit::Unavailable => {
                failure.message
            }
            Err(failure) => return Err(failure),
        };
        if reader.seen.count > shown {
            (pause, told) = (SHORTEST, false);
        }
        if !told {
            writeln!(shell.err, "{}", line(&format!("note: {why}; connecting again")))?;
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shell.interrupt.wait() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST);
    }
}

enum End {
    /// Everything that was asked for is there, or the person has seen enough.
    Done,
    /// The stream ended though it was to be followed.
    Complete,
}

struct Reader<'a> {
    client: &'a Client,
    format: Format,
    args: &'a Logs,
    /// Nothing older is asked for; null where everything is.
    since: Value,
    seen: Seen,
    /// A stream was open once: what fails from now on is taken up again.
    connected: bool,
}

impl Reader<'_> {
    /// One stream from its opening to its end.
    async fn read(&mut self, shell: &mut Shell) -> Outcome<End> {
        let interrupt = shell.interrupt.clone();
        // A name that is not there is said before a stream is opened for it; and an agent that went away in between.
        let opened = async {
            let agent = get::agent(self.client, &self.args.agent).await?;
            // After a break everything that the hub still has is read, and what was shown is left out.
            let tail = match (self.connected, self.args.tail) {
                (false, Some(tail)) => tail,
                (false, None) if self.args.since.is_none() => TAIL,
                _ => MOST,
            };
            let variables = json!({"project": agent.project, "name": agent.name, "tail": tail,
                "follow": self.args.follow, "since": self.since});
            let lines = Subscription::start(self.client, "AgentLogs", "agentLogs", variables).await?;
            Ok::<_, Failure>((lines, agent.placements.len() > 1))
        };
        let (mut lines, several) = tokio::select! {
            opened = opened => opened?,
            () = interrupt.wait() => return Ok(End::Done),
        };
        self.connected = true;
        self.seen.begin();
        loop {
            let next = tokio::select! {
                next = lines.next::<LogLine>() => next?,
                () = interrupt.wait() => break,
            };
            let item = match next {
                Next::Item(item) => item,
                Next::Complete if self.args.follow => return Ok(End::Complete),
                Next::Complete => return Ok(End::Done),
            };
            if self.seen.is_new(&item) {
                self.show(&item, several, shell)?;
            }
        }
        lines.stop().await;
        Ok(End::Done)
    }

    fn show(&self, item: &LogLine, several: bool, shell: &mut Shell) -> Outcome<()> {
        match self.format {
            Format::Table => shell.say(&shown(item, several))?,
            format => render::item(shell, format, item)?,
        }
        shell.flush()
    }
}

fn shown(item: &LogLine, several: bool) -> String {
    let at = item.time.map(|t| format!("{} ", time(t))).unwrap_or_default();
    let cluster = if several {
        format!("{} ", item.cluster)
    } else {
        String::new()
    };
    format!("{}\n", line(&format!("{at}{cluster}{}", item.line)))
}

/// What was shown, so that a stream that is opened again repeats nothing.
///
/// A stream begins with the lines that the cluster agent still has, in the order in which they were shown: a line of
/// them is looked for behind the one that was found last. Their times need not be in order, since an engine's lines and
/// its runtime's are read by different hands. What carries no time is a remark on one stream and is shown as it comes.
#[derive(Debug, Default)]
struct Seen {
    count: u64,
    clusters: BTreeMap<String, Lines>,
}

/// Lines of one cluster, by their hashes, oldest first.
#[derive(Debug, Default)]
struct Lines {
    /// Of the streams before this one, and not met again yet.
    past: VecDeque<u64>,
    shown: VecDeque<u64>,
}

impl Seen {
    /// A stream begins.
    fn begin(&mut self) {
        for lines in self.clusters.values_mut() {
            let mut past = std::mem::take(&mut lines.shown);
            past.append(&mut lines.past);
            let surplus = past.len().saturating_sub(MOST as usize);
            past.drain(..surplus);
            lines.past = past;
        }
    }

    fn is_new(&mut self, item: &LogLine) -> bool {
        let lines = self.clusters.entry(item.cluster.clone()).or_default();
        let mut is_new = true;
        if let Some(time) = item.time {
            let line = hash(time, &item.line);
            if let Some(at) = lines.past.iter().position(|known| *known == line) {
                lines.past.drain(..=at);
                is_new = false;
            }
            lines.shown.push_back(line);
            if lines.shown.len() > MOST as usize {
                lines.shown.pop_front();
            }
        }
        self.count += u64::from(is_new);
        is_new
    }
}

fn hash(time: DateTime<Utc>, line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (time.timestamp_millis(), line).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(cluster: &str, ms: i64, line: &str) -> LogLine {
        LogLine {
            cluster: cluster.to_owned(),
            time: DateTime::from_timestamp_millis(ms),
            line: line.to_owned(),
        }
    }

    fn new(seen: &mut Seen, items: &[LogLine]) -> Vec<String> {
        seen.begin();
        let new = items.iter().filter(|item| seen.is_new(item));
        new.map(|item| item.line.clone()).collect()
    }

    #[test]
    fn a_stream_that_is_opened_again_repeats_and_loses_nothing() {
        let mut seen = Seen::default();
        // Times out of order, and two lines that differ in nothing.
        let past = [
            item("a", 5, "x"),
            item("a", 4, "y"),
            item("a", 6, "z"),
            item("a", 6, "z"),
            item("b", 1, "b1"),
        ];
        assert_eq!(new(&mut seen, &past), ["x", "y", "z", "z", "b1"]);
        let again = [
            &past[..],
            &[item("a", 6, "z"), item("a", 6, "new"), item("c", 1, "c1")],
        ]
        .concat();
        assert_eq!(new(&mut seen, &again), ["z", "new", "c1"]);
        // The oldest lines are gone, and the stream broke off before it had repeated everything.
        assert_eq!(new(&mut seen, &again[1..3]), Vec::<String>::new());
        let later = [&again[2..], &[item("a", 7, "last")]].concat();
        assert_eq!(new(&mut seen, &later), ["last"]);
        // A line that was missed between two that were shown; an engine that has forgotten its past.
        let mut seen = Seen::default();
        new(&mut seen, &[item("a", 1, "1"), item("a", 3, "3")]);
        let whole = [
            item("a", 1, "1"),
            item("a", 2, "2"),
            item("a", 3, "3"),
            item("a", 4, "4"),
        ];
        assert_eq!(new(&mut seen, &whole), ["2", "4"]);
        assert_eq!(new(&mut seen, &[item("a", 1, "anew")]), ["anew"]);
    }

    #[test]
    fn what_has_no_time_is_shown() {
        let mut seen = Seen::default();
        let mut remark = item("a", 1, "skipped");
        remark.time = None;
        assert_eq!(new(&mut seen, &[remark, item("a", 5, "x")]), ["skipped", "x"]);
    }
}
