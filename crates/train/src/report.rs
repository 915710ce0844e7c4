//! What a run tells: progress on the terminal, `metrics.jsonl`, `summary.json`.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::bound::Bound;
use crate::engine::GraphUse;
use crate::evaluate::Evaluation;
use crate::rundir::RunDir;
use crate::tfevents::EventFile;
use crate::timeline::Times;
use crate::weights::Begun;
use crate::{Error, Result};

/// A line of `metrics.jsonl`, also printed with `--json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Event {
    /// The run, or a further start of it, begins.
    Start {
        /// The first step.
        step: u64,
        /// World size.
        world_size: u32,
        /// V.
        virtual_shards: u32,
        /// Parameters of the model.
        parameters: u64,
        /// The checkpoint that it goes on from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumed_from: Option<PathBuf>,
        /// The weights that the run began with, where they were not random.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        init: Option<Begun>,
        /// What it computes on: `cpu` or `cuda`.
        #[serde(default)]
        device: String,
        /// What that is called.
        #[serde(default)]
        device_name: String,
        /// Why no GPU was taken, where that was left open, in few words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        no_gpu: Option<String>,
    },
    /// A logged step.
    Step {
        /// Steps done.
        step: u64,
        /// The step's epoch.
        epoch: u64,
        /// Mean loss of the step.
        #[serde(deserialize_with = "or_nan")]
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// Samples a second since the line before.
        #[serde(deserialize_with = "or_nan")]
        samples_per_second: f64,
        /// The norm of the averaged gradients before clipping, where it is clipped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grad_norm: Option<f64>,
        /// What the loss is multiplied by for backward, where activations are fp16.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f64>,
        /// Steps of the run that were skipped since it was too large.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        skipped_steps: Option<u64>,
        /// The phases' own statistics, by name.
        #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
        statistics: serde_json::Map<String, serde_json::Value>,
        /// What rank 0's steps since the line before were bound by.
        #[serde(flatten)]
        bound: Option<Bound>,
        /// What rank 0 has spent its time on since the line before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Times>,
    },
    /// An epoch has ended.
    Epoch {
        /// Steps done.
        step: u64,
        /// The epoch, from 0.
        epoch: u64,
        /// Mean loss over the epoch.
        #[serde(deserialize_with = "or_nan")]
        train_loss: f64,
    },
    /// An evaluation.
    Eval {
        /// Steps done.
        step: u64,
        /// The epoch that ended before it, from 0.
        epoch: u64,
        /// The result.
        #[serde(flatten)]
        eval: Evaluation,
    },
    /// Something the user should know.
    Warning {
        /// What.
        message: String,
    },
}

impl Event {
    /// The steps done when it happened.
    fn step(&self) -> Option<u64> {
        match self {
            Event::Start { step, .. }
            | Event::Step { step, .. }
            | Event::Epoch { step, .. }
            | Event::Eval { step, .. } => Some(*step),
            Event::Warning { .. } => None,
        }
    }
}

impl Event {
    /// What of it TensorBoard draws.
    fn scalars(&self) -> Vec<(&'static str, f64)> {
        match self {
            Event::Step { loss, lr, samples_per_second, grad_norm, loss_scale, bound, .. } => {
                let mut scalars = vec![
                    ("train/loss", *loss),
                    ("train/lr", *lr),
                    ("train/samples_per_second", *samples_per_second),
                ];
                scalars.extend(grad_norm.map(|norm| ("train/grad_norm", norm)));
                scalars.extend(loss_scale.map(|scale| ("train/loss_scale", scale)));
                scalars.extend(bound.map(|bound| ("train/stall_share", bound.stall_share)));
                scalars
            }
            Event::Epoch { train_loss, .. } => vec![("train/epoch_loss", *train_loss)],
            Event::Eval { eval, .. } => vec![
                ("eval/loss", eval.loss),
                ("eval/top1_error", eval.top1_error),
                ("eval/top5_error", eval.top5_error),
            ],
            Event::Start { .. } | Event::Warning { .. } => Vec::new(),
        }
    }
}

/// How a run ended, and what it came to (`summary.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// `finished`, `stopped` (on a signal) or `max-steps`.
    pub status: String,
    /// World size of the last start.
    pub world_size: u32,
    /// V.
    pub virtual_shards: u32,
    /// The transport.
    pub comm: String,
    /// What it was computed on: `cpu` or `cuda`.
    pub device: String,
    /// What that is called.
    #[serde(default)]
    pub device_name: String,
    /// Whole epochs done.
    pub epochs: u64,
    /// Steps done.
    pub steps: u64,
    /// Samples consumed, over all starts of the run.
    pub samples_seen: u64,
    /// Samples a second in the training steps of this start.
    pub samples_per_second: f64,
    /// The median time of a step in this start, in milliseconds.
    pub step_ms_p50: f64,
    /// Mean loss over the last whole epoch, or over the running one when there is none.
    #[serde(deserialize_with = "or_nan")]
    pub train_loss: f64,
    /// The last evaluation.
    pub eval: Option<Evaluation>,
    /// BLAKE3 of the parameters in name order, as in the checkpoint.
    pub params_hash: String,
    /// BLAKE3 of the norms' running statistics, likewise.
    pub buffers_hash: String,
    /// BLAKE3 of the averaged parameters, likewise, when an average is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_hash: Option<String>,
    /// The most memory that the process had at once.
    pub peak_rss_bytes: u64,
    /// The most memory of rank 0's GPU that was in use at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_device_bytes: Option<u64>,
    /// On a GPU, whether steps of this start were launched as CUDA graphs: `true`, or why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_graph: Option<GraphUse>,
    /// What the ranks have spent their time on in this start.
    #[serde(default)]
    pub time: Times,
    /// What the steps of this start were bound by.
    #[serde(flatten)]
    pub bound: Option<Bound>,
    /// Bytes of records that the ranks have read in this start.
    #[serde(default)]
    pub bytes_read: u64,
    /// Samples whose records could not be used, over all starts of the run.
    #[serde(default)]
    pub bad_records: u64,
    /// Seconds, over all starts of the run.
    pub wall_s: f64,
}

/// JSON has no word for a number that is none: it is written as null.
pub(crate) fn or_nan<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// The most memory that this process had at once, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The `p`-quantile (0 to 1) of `values`, which it sorts; 0 for none.
pub fn quantile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len().saturating_sub(1) as f64 * p).round() as usize;
    values.get(at).copied().unwrap_or(0.0)
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A bar on a terminal, lines elsewhere.
    Human,
    /// JSON lines on standard output.
    Json,
    /// Nothing but errors.
    Quiet,
}

/// Rank 0's voice.
pub struct Reporter {
    style: Style,
    bar: ProgressBar,
    metrics: Option<fs::File>,
    events: EventFile,
    path: PathBuf,
}

impl Reporter {
    /// Speaks for start `attempt` of the run in `dir`, which begins at `first_step` of `steps`, perhaps
    /// with an evaluation that is due. Lines of earlier starts that this one will do again are taken out
    /// of `metrics.jsonl`.
    pub fn new(
        dir: &RunDir,
        style: Style,
        attempt: u32,
        first_step: u64,
        steps: u64,
        evaluation_due: bool,
    ) -> Result<Self> {
        let path = dir.path().join("metrics.jsonl");
        if let Ok(file) = fs::File::open(&path) {
            let mut kept = String::new();
            for line in BufReader::new(file).lines().map_while(std::io::Result::ok) {
                let again = |e: &Event| match e {
                    Event::Eval { step, .. } if evaluation_due => *step >= first_step,
                    _ => e.step().is_some_and(|s| s > first_step),
                };
                // A torn line is what a killed process leaves.
                if serde_json::from_str::<Event>(&line).is_ok_and(|e| !again(&e)) {
                    kept += &line;
                    kept.push('\n');
                }
            }
            dir.write("metrics.jsonl", kept.as_bytes())?;
        }
        let metrics = fs::OpenOptions::new().create(true).append(true).open(&path);
        let metrics = Some(metrics.map_err(Error::io("open", &path))?);
        // A bar is for eyes: with the lines going to a file it would tear them apart.
        let on_terminal =
            style == Style::Human && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let target =
            if on_terminal { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(first_step);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} steps {elapsed} ETA {eta} {msg}")
        {
            bar.set_style(style);
        }
        let events = EventFile::create(dir.path(), attempt, first_step)?;
        Ok(Reporter { style, bar, metrics, events, path })
    }

    /// Records an event and shows it.
    pub fn tell(&mut self, event: &Event) -> Result<()> {
        let json = serde_json::to_string(event).map_err(|e| Error::Io {
            doing: "write",
            path: self.path.clone(),
            cause: e.into(),
        })?;
        if let Some(file) = &mut self.metrics {
            writeln!(file, "{json}").map_err(Error::io("write", &self.path))?;
        }
        let scalars = event.scalars();
        if let (Some(step), false) = (event.step(), scalars.is_empty()) {
            self.events.scalars(step, &scalars)?;
        }
        match self.style {
            Style::Json => say(&json),
            Style::Quiet => {}
            Style::Human => self.show(event),
        }
        Ok(())
    }

    fn show(&self, event: &Event) {
        let text = match event {
            Event::Start {
                step,
                world_size,
                virtual_shards,
                parameters,
                resumed_from,
                init,
                device,
                device_name,
                no_gpu,
            } => {
                let from = match (resumed_from, init) {
                    (Some(p), _) => format!(", going on from {} (step {step})", p.display()),
                    (None, Some(init)) => format!(", beginning with {init}"),
                    (None, None) => String::new(),
                };
                let on = match (&**device, no_gpu) {
                    ("cpu" | "", None) => String::new(),
                    ("cpu", Some(why)) => format!(", on the CPU (no GPU is used: {why})"),
                    _ => format!(", on {device_name}"),
                };
                format!(
                    "{}, {}, {}{on}{from}",
                    count(*parameters, "parameter"),
                    count((*world_size).into(), "rank"),
                    count((*virtual_shards).into(), "virtual shard")
                )
            }
            Event::Step { step, epoch, loss, lr, samples_per_second, .. } => {
                let text = format!(
                    "epoch {:>3}  step {step:>6}  loss {loss:.4}  lr {lr:.5}  {samples_per_second:.0} samples/s",
                    epoch + 1
                );
                self.bar.set_position(*step);
                if !self.bar.is_hidden() {
                    self.bar.set_message(format!("loss {loss:.4} {samples_per_second:.0}/s"));
                    return;
                }
                text
            }
            Event::Epoch { epoch, train_loss, .. } => {
                format!("epoch {:>3}  training loss {train_loss:.4}", epoch + 1)
            }
            Event::Eval { epoch, eval, .. } => format!(
                "epoch {:>3}  evaluation loss {:.4}  error {:.2} %  ({} samples{})",
                epoch + 1,
                eval.loss,
                eval.top1_error * 100.0,
                eval.samples,
                eval.of_what()
            ),
            Event::Warning { message } => format!("warning: {message}"),
        };
        self.line(&text);
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() { say(text) } else { self.bar.println(text) }
    }

    /// Says something beside the results, to people.
    pub(crate) fn aside(&self, text: &str) {
        if self.style == Style::Human {
            self.line(text);
        }
    }

    /// Shows the end of the run.
    pub fn finish(&mut self, dir: &RunDir, summary: &Summary) -> Result<()> {
        if let Some(file) = &self.metrics {
            file.sync_all().map_err(Error::io("sync", &self.path))?;
        }
        self.events.sync()?;
        self.bar.finish_and_clear();
        show_summary(dir, self.style, summary);
        Ok(())
    }
}

impl Drop for Reporter {
    /// An error message must not begin in the middle of a bar.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Shows how a run ended.
pub(crate) fn show_summary(dir: &RunDir, style: Style, summary: &Summary) {
    match style {
        Style::Quiet => {}
        Style::Json => {
            if let Ok(serde_json::Value::Object(mut map)) = serde_json::to_value(summary) {
                map.insert("kind".into(), "summary".into());
                say(&serde_json::Value::Object(map).to_string());
            }
        }
        Style::Human => {
            let eval = summary.eval.as_ref().map_or(String::new(), |e| {
                format!(
                    "\n  error        {:.2} % of {} samples (top 5: {:.2} %{})",
                    e.top1_error * 100.0,
                    e.samples,
                    e.top5_error * 100.0,
                    e.of_what()
                )
            });
            let speed = match summary.step_ms_p50 > 0.0 {
                true => format!(
                    "\n  speed        {:.0} samples/s, {:.2} ms a step",
                    summary.samples_per_second, summary.step_ms_p50
                ),
                false => String::new(),
            };
            let time = match summary.time.shares() {
                shares if shares.is_empty() => shares,
                shares => format!("\n  time         {shares}"),
            };
            let wall = Duration::from_secs_f64(summary.wall_s.max(0.0));
            let bad = match summary.bad_records {
                0 => String::new(),
                n => format!("\n  bad records  {}, in quarantine.jsonl", count(n, "sample")),
            };
            say(&format!(
                "{} after {}, {}, {} in {wall:.1?}\n  training loss {:.4}{eval}{speed}{time}{bad}\n  params_hash  {}\n  \
                 run          {}",
                summary.status,
                count(summary.epochs, "epoch"),
                count(summary.steps, "step"),
                count(summary.samples_seen, "sample"),
                summary.train_loss,
                summary.params_hash,
                dir.path().display()
            ));
        }
    }
}

/// Prints a line; a reader that has gone away is no reason to end a run.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Says something beside a command's results, on standard error.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_many() {
        assert_eq!(quantile(&mut [], 0.5), 0.0);
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.5), 2.0);
        assert!(peak_rss_bytes() > 0);
    }

    #[test]
    fn a_resumed_run_has_no_line_twice() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path());
        let line = |step| Event::Epoch { step, epoch: 0, train_loss: 1.0 };
        let eval = |step| {
            let eval = Evaluation {
                loss: f64::NAN,
                top1_error: 0.5,
                top5_error: 0.0,
                samples: 2,
                bad_records: 0,
                ema: false,
                views: None,
            };
            Event::Eval { step, epoch: 0, eval }
        };
        let steps = || {
            let text = fs::read_to_string(tmp.path().join("metrics.jsonl")).unwrap();
            let step = |l| serde_json::from_str::<Event>(l).unwrap().step().unwrap();
            text.lines().map(step).collect::<Vec<_>>()
        };
        let mut r = Reporter::new(&dir, Style::Quiet, 1, 0, 9, false).unwrap();
        (1..=5).for_each(|s| r.tell(&line(s)).unwrap());
        let mut r = Reporter::new(&dir, Style::Quiet, 2, 3, 9, false).unwrap();
        (4..=6).for_each(|s| r.tell(&line(s)).unwrap());
        r.tell(&eval(6)).unwrap();
        assert_eq!(steps(), [1, 2, 3, 4, 5, 6, 6]);
        // A loss that is no number is kept as well; an evaluation that is made again is not.
        drop(Reporter::new(&dir, Style::Quiet, 3, 6, 9, false).unwrap());
        assert_eq!(steps(), [1, 2, 3, 4, 5, 6, 6]);
        drop(Reporter::new(&dir, Style::Quiet, 4, 6, 9, true).unwrap());
        assert_eq!(steps(), [1, 2, 3, 4, 5, 6]);
    }
}
