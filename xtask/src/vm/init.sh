#!/bin/busybox sh
# The first program of the virtual machine, from its initial file system: puts the host's root,
# read-only, below a file system in memory, and goes on there with the tests.
b=/bin/busybox

$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod "$module" || $b poweroff -f; done

$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 host /host \
    && $b mount -t tmpfs over /over \
    && $b mkdir /over/upper /over/work \
    && $b mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work root /root \
    && $b mount -t tmpfs tmp /root/tmp \
    && $b mount -t tmpfs run /root/run \
    && $b cp /suite.sh /root/run/suite.sh \
    || $b poweroff -f
for dir in proc sys dev; do $b mount --move /$dir /root/$dir; done
exec $b switch_root /root /bin/sh /run/suite.sh
