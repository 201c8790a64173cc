//! Debian's 6.1 kernel, unpacked beside what is built: a virtual machine boots it, and nothing is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::refresh_lists;
use crate::{step, workspace};

/// Start of the release that is tested beside this machine's own.
const RELEASE: &str = "6.1.";

/// What of the package is needed: the image, and modules for a virtual machine's root and for the laboratory.
const UNPACK: &str = "set -e
apt-get download \"linux-image-$RELEASE\"
modules=./lib/modules/$RELEASE
dpkg-deb --fsys-tarfile linux-image-*.deb >package.tar
tar -x --wildcards --no-wildcards-match-slash -f package.tar \"./boot/vmlinuz-$RELEASE\" \"$modules/modules.*\" \\
    \"$modules/kernel/net\" \"$modules/kernel/drivers/net/*.ko\" \"$modules/kernel/drivers/virtio\" \\
    \"$modules/kernel/fs/9p\" \"$modules/kernel/fs/netfs\" \"$modules/kernel/fs/fscache\" \"$modules/kernel/fs/overlayfs\" \"$modules/kernel/lib\"
rm linux-image-*.deb package.tar
depmod -b . \"$RELEASE\"
";

/// Unpacks the kernel unless it is there.
///
/// # Errors
/// It is missing and only a report was wanted, or apt has none.
pub(super) fn unpack(check: bool) -> Result<()> {
    let kernels = workspace::target().join("kernels");
    if let Some(release) = unpacked(&kernels) {
        step::say(format!("kernel {release} for a virtual machine: there"));
        return Ok(());
    }
    if check {
        bail!("missing: a kernel {RELEASE}x for a virtual machine; run `cargo xtask setup --tests`");
    }
    let release = match newest() {
        Some(release) => release,
        None => {
            refresh_lists();
            newest().with_context(|| format!("apt has no linux-image-{RELEASE}*-amd64, which Debian 12 brings"))?
        }
    };
    let unnamed = kernels.join("unpacking");
    let _ = fs::remove_dir_all(&unnamed);
    fs::create_dir_all(&unnamed).with_context(|| format!("cannot make {}", unnamed.display()))?;
    let mut shell = Command::new("sh");
    shell.args(["-c", UNPACK]).env("RELEASE", &release).current_dir(&unnamed);
    step::run(&format!("unpack kernel {release} for a virtual machine"), &mut shell)?;
    // Whole at once: half a kernel would be taken for one.
    let named = kernels.join(&release);
    fs::rename(&unnamed, &named).with_context(|| format!("cannot make {}", named.display()))
}

fn unpacked(kernels: &Path) -> Option<String> {
    let entries = fs::read_dir(kernels).ok()?.flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| name.starts_with(RELEASE))
}

/// The newest release in apt's lists, as `6.1.0-57-amd64`.
fn newest() -> Option<String> {
    let pattern = format!("^linux-image-{}[0-9.-]+-amd64$", RELEASE.replace('.', "\\."));
    let list = step::output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    list.lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        assert!(numbers("6.1.0-100-amd64") > numbers("6.1.0-57-amd64"));
    }
}
