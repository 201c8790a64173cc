#!/bin/sh
# The first process of a machine of its own, in new namespaces: this host's files under a layer of memory, and systemd on top.
# $1: a directory with `files`, laid over the root, and `shared`, which appears as /run/shared.
set -e
work=$1
mount --make-rprivate /
mkdir -p "$work/layer"
mount -t tmpfs layer "$work/layer"
mkdir "$work/layer/upper" "$work/layer/work" "$work/layer/root"
mount -t overlay root -o "lowerdir=/,upperdir=$work/layer/upper,workdir=$work/layer/work" "$work/layer/root"
cd "$work/layer/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs run run
mkdir run/shared
mount --bind "$work/shared" run/shared
mount -t tmpfs dev dev
mkdir dev/pts dev/shm dev/net
for device in null zero full random urandom tty net/tun; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
# What this host starts is not this machine's.
rm -rf etc/systemd/system/*.wants etc/machine-id etc/enforcer var/lib/enforcer var/log/enforcer
cp -a "$work/files/." .
mount -t tmpfs tmp tmp
pivot_root . mnt
umount -l /mnt
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
