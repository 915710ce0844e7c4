use crate::{Error, Result};

/// Runs `work` on `threads` threads, this one among them; at least on this one.
pub(crate) fn on_threads(threads: usize, doing: &'static str, work: impl Fn() + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let others = (1..threads).map(|k| {
            let thread = std::thread::Builder::new().name(format!("{doing} {k}"));
            thread.spawn_scoped(scope, &work).map_err(Error::io("start a thread to", doing))
        });
        let others = others.collect::<Result<Vec<_>>>()?;
        work();
        let ended = others.into_iter().map(|thread| thread.join()).collect::<Vec<_>>();
        match ended.iter().all(|end| end.is_ok()) {
            true => Ok(()),
            false => Err(Error::Panic { message: format!("in a thread to {doing}") }),
        }
    })
}
