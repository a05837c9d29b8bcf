# Runs in the virtual machine, on the host's programs: what the tests expect to find, then the
# tests. The second serial line is theirs; the first is the kernel's.
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# The processor is an emulated one.
export PORTCULLIS_TEST_SLOWNESS=5

mkdir -p "/lib/modules/$(uname -r)"
mount --bind @MODULES@/"$(uname -r)" "/lib/modules/$(uname -r)"
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe tun
ip link set lo up

cd @DIR@ || exit 1
