//! The writer: a thread behind a bounded queue, a file that is rotated.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use policy::FlowRecord;

use super::Counters;
use crate::config::{Records, rotated};

/// Batches that may wait for the disk. One is an interval's records, or without aggregation a single one.
const QUEUE: usize = 1024;

/// Where records go. Dropping it waits until all of them are written.
pub struct Sink {
    queue: Option<SyncSender<Vec<FlowRecord>>>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
}

impl Sink {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(config: &Records, counters: Arc<Counters>) -> io::Result<Self> {
        // An interval's records are many; two that wait are memory enough.
        let (queue, records) = sync_channel(if config.interval.is_zero() { QUEUE } else { 2 });
        let mut writer = Writer::new(config, counters.clone());
        let thread = std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&records))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), counters })
    }

    /// Hands records over; those the disk is too slow for are dropped and counted.
    pub fn write(&self, records: Vec<FlowRecord>) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) = queue.try_send(records) {
            self.counters.dropped_queue.fetch_add(lost.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    stdout: bool,
    max_bytes: u64,
    keep: u32,
    file: Option<File>,
    failing: bool,
    counters: Arc<Counters>,
}

impl Writer {
    fn new(config: &Records, counters: Arc<Counters>) -> Self {
        Self {
            path: config.file.clone(),
            stdout: config.file == Path::new(Records::STDOUT),
            max_bytes: config.max_bytes,
            keep: config.keep,
            file: None,
            failing: false,
            counters,
        }
    }

    fn run(&mut self, batches: &Receiver<Vec<FlowRecord>>) {
        while let Ok(records) = batches.recv() {
            let count = records.len() as u64;
            match self.write(&records) {
                Ok(()) => {
                    self.counters.written.fetch_add(count, Ordering::Relaxed);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(file = %self.path.display(), "flow records are written again");
                    }
                }
                Err(error) => {
                    self.counters.dropped_write.fetch_add(count, Ordering::Relaxed);
                    // Opened anew the next time: the file may have been moved, the disk replaced.
                    self.file = None;
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!(
                            file = %self.path.display(), %error,
                            "flow records are lost until this is mended; enforcement goes on"
                        );
                    }
                }
            }
        }
    }

    fn write(&mut self, records: &[FlowRecord]) -> io::Result<()> {
        let mut text = Vec::with_capacity(records.len() * 512);
        for record in records {
            serde_json::to_writer(&mut text, record)?;
            text.push(b'\n');
        }
        if self.stdout {
            let mut out = io::stdout().lock();
            return out.write_all(&text).and_then(|()| out.flush());
        }
        let max_bytes = self.max_bytes;
        let file = self.open()?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(&text) {
            // Half a line would be no record.
            let _ = file.set_len(before);
            return Err(error);
        }
        if before + text.len() as u64 > max_bytes {
            self.rotate()?;
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            if let Some(directory) = self.path.parent() {
                fs::create_dir_all(directory)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("not open"))
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        if self.keep == 0 {
            return ignore_missing(fs::remove_file(&self.path));
        }
        for number in (0..self.keep).rev() {
            ignore_missing(fs::rename(rotated(&self.path, number), rotated(&self.path, number + 1)))?;
        }
        Ok(())
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
