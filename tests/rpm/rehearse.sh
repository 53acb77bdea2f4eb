#!/usr/bin/env bash
# Tests the packages on a host whose systemd runs as PID 1: installs them with dnf, enables the services, sends requests,
# upgrades while an engine is running, kills the daemons, and removes the packages. The host is Debian's next release in
# namespaces of this machine, with the tool versions of Fedora 43 and later (rpm 6, dnf5, systemd 260 and later, Python
# 3.14). Fedora's scriptlets and triggers come from systemd's sources; an empty package provides the capabilities of Fedora
# packages.
#
#   sudo make rehearse            requires debootstrap, createrepo_c, overlayfs, namespaces and Debian's mirror
#
# The root filesystem (1 GiB) is cached in build/host.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly HOST=$PWD/build/host
readonly NAME=rehearsal
VERSION=$(sed -n 's/^Version: *//p' rpm/cortex.spec)
readonly VERSION

skip() { echo "skipped: $*"; exit 0; }
say() { echo "== $*"; }
[ "$(id -u)" = 0 ] || skip 'only root can boot a host in namespaces'
for tool in debootstrap createrepo_c unshare nsenter; do
  command -v "$tool" >/dev/null || skip "needs $tool"
done
unshare --pid --mount --cgroup --uts --net --ipc --fork true || skip 'namespaces are not allowed here'
ls dist/cortex_gpu-*.tar.gz dist/cortex-wheelhouse-*.tar >/dev/null || skip 'needs the sources: make srpm'

CGROUPS=$(findmnt -nt cgroup2 -o TARGET | head -n 1)
[ -n "$CGROUPS" ] || skip 'needs cgroups of version 2'
readonly CGROUPS

root_filesystem() {
  [ ! -e "$HOST/root/.complete" ] || return 0
  say 'creating a root filesystem'
  local scripts=/usr/share/debootstrap/scripts
  [ -e "$scripts/forky" ] || ln -s sid "$scripts/forky"
  rm -rf "$HOST/root"
  debootstrap --variant=minbase forky "$HOST/root" http://deb.debian.org/debian > "$HOST/debootstrap.log"
  echo 'deb-src http://deb.debian.org/debian forky main' >> "$HOST/root/etc/apt/sources.list"
  # Accept a mirror that is a few days behind.
  echo 'Acquire::Check-Valid-Until "false";' > "$HOST/root/etc/apt/apt.conf.d/rehearsal"
  printf '#!/bin/sh\nexit 101\n' > "$HOST/root/usr/sbin/policy-rc.d"
  chmod +x "$HOST/root/usr/sbin/policy-rc.d"
  chroot "$HOST/root" sh -ec '
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -qy --no-install-recommends install systemd-sysv libpam-systemd rpm dnf5 firewalld curl procps \
      python3-dev python3-venv
    cd /root && apt-get -q --download-only source systemd
    tar xzf systemd_*.orig.tar.gz --strip-components=2 --wildcards "*/src/rpm/*"
    ln -s dnf5 /usr/bin/dnf
    # This plugin keeps installed packages as a repository, which Fedora does not, and requires another program.
    sed -i "s/^enabled *=.*/enabled = 0/" /etc/dnf/libdnf5-plugins/local.conf
    rm -f /etc/machine-id /etc/hostname /usr/lib/systemd/system-preset/*
    echo "enable firewalld.service" > /usr/lib/systemd/system-preset/50-firewalld.preset
    echo "disable *" > /usr/lib/systemd/system-preset/99-default.preset
    touch /etc/machine-id
  ' > "$HOST/apt.log" 2>&1
  # Fedora's macros and the helper that its scriptlets call, with paths that are the same on both systems.
  local helper=/usr/lib/systemd/systemd-update-helper
  for file in macros.systemd systemd-update-helper triggers.systemd; do
    sed -e "s#{{SYSTEMD_UPDATE_HELPER_PATH}}#$helper#g" -e 's#{{SYSTEM_DATA_UNIT_DIR}}#/usr/lib/systemd/system#g' \
      -e 's#{{SYSUSERS_DIR}}#/usr/lib/sysusers.d#g' -e 's#{{UPDATE_HELPER_USER_TIMEOUT_SEC}}#15#g' \
      -e 's#{{[A-Z_]*}}#/nowhere#g' "$HOST/root/root/rpm/$file.in" > "$HOST/root/root/$file"
  done
  cat >> "$HOST/root/root/macros.systemd" <<'MACRO'

%firewalld_reload test -f /usr/bin/firewall-cmd && firewall-cmd --reload --quiet || :
MACRO
  install -m 0755 "$HOST/root/root/systemd-update-helper" "$HOST/root$helper"
  touch "$HOST/root/.complete"
}

# Mount an overlay over the root filesystem, so that the latter is not modified.
mount_overlay() { # name
  mkdir -p "$HOST/$1/upper" "$HOST/$1/work" "$HOST/$1/root"
  mount -t overlay "$1" -o "lowerdir=$HOST/root,upperdir=$HOST/$1/upper,workdir=$HOST/$1/work" "$HOST/$1/root"
}

packages() { # releases; creates a repository in $HOST/repo
  rm -rf "$HOST/build" "$HOST/repo"
  mkdir -p "$HOST/repo"
  mount_overlay build
  local chroot_dir=$HOST/build/root/build
  mkdir -p "$chroot_dir/sources"
  cp dist/cortex_gpu-*.tar.gz dist/cortex-wheelhouse-*.tar "$chroot_dir/sources"
  cp rpm/cortex.spec rpm/debian.macros "$chroot_dir"
  mount -t proc proc "$HOST/build/root/proc"
  local release
  for release in "$@"; do
    say "building release $release"
    chroot "$HOST/build/root" unshare --net rpmbuild --load /build/debian.macros --load /root/macros.systemd \
      --define '_topdir /build/top' --define '_sourcedir /build/sources' --define "dist .$release" \
      --nodeps -bb /build/cortex.spec > "$HOST/rpmbuild.log" 2>&1
  done
  # A package with the capabilities that Fedora's packages provide and the triggers of its systemd.
  {
    printf '%s\n' 'Name: fedora' 'Version: 43' 'Release: 1' 'Summary: Placeholder' 'License: MIT' 'AutoReqProv: no'
    chroot "$HOST/build/root" sh -c 'rpm -qp --requires /build/top/RPMS/x86_64/*.rpm' | sort -u \
      | grep -Ev '^(/usr/lib64|rpmlib|config|(user|group)\((cortex|neuron)\)|neuron)' | sed 's/^/Provides: /'
    printf '%s\n' '%description' 'Placeholder.' '%files'
    sed -n '/^%transfiletrigger.*\(systemd\/system\|sysusers\)/,/^$/p' "$HOST/root/root/triggers.systemd"
  } > "$chroot_dir/fedora.spec"
  chroot "$HOST/build/root" rpmbuild --define '_topdir /build/top' -bb /build/fedora.spec > "$HOST/placeholder.log" 2>&1
  cp "$chroot_dir"/top/RPMS/*/*.rpm "$HOST/repo"
  createrepo_c --quiet "$HOST/repo"
  umount --lazy "$HOST/build/root/proc" "$HOST/build/root"
}

boot() {
  say 'booting'
  rm -rf "${HOST:?}/$NAME"
  mkdir -p "$CGROUPS/$NAME"
  mkdir -p "$HOST/$NAME/upper" "$HOST/$NAME/work" "$HOST/$NAME/root"
  cat > "$HOST/$NAME/init" <<BOOT
echo \$\$ > $CGROUPS/$NAME/cgroup.procs
exec unshare --pid --mount --cgroup --uts --net --ipc --fork sh -ec '
mount --make-rprivate /
cd $HOST/$NAME/root
mount -t overlay host -o lowerdir=$HOST/root,upperdir=$HOST/$NAME/upper,workdir=$HOST/$NAME/work .
cd $HOST/$NAME/root
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 run run; mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm srv/repo
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts; mount -t tmpfs shm dev/shm
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev; ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount --bind $HOST/repo srv/repo
hostname $NAME; ip link set lo up
mkdir -p old; pivot_root . old; umount -l old
exec env -i container=$NAME PATH=/usr/sbin:/usr/bin TERM=dumb /sbin/init'
BOOT
  setsid bash "$HOST/$NAME/init" > "$HOST/$NAME/console.log" 2>&1 < /dev/null &
  trap shut_down EXIT
  for _ in $(seq 60); do
    on_host true 2>/dev/null && break || sleep 1
  done
  on_host systemctl is-system-running --wait
}

init_pid() { head -n 1 "$CGROUPS/$NAME/init.scope/cgroup.procs"; }
on_host() { # run a command on the host
  nsenter --target "$(init_pid)" --pid --mount --uts --ipc --net --cgroup -- \
    env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin "$@"
}
shut_down() {
  kill -KILL "$(init_pid)" || :
  wait || :
  find "$CGROUPS/$NAME" -depth -type d -exec rmdir {} + || :
}

send_request() {
  on_host curl -sSN --fail --max-time 60 http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \
    -d '{"model": "tiny", "stream": true, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}' \
    | grep -Fx 'data: [DONE]'
}
engine_pid() { on_host pgrep -f 'neuron_server.embedded_engine.worker --model'; }

run_tests() {
  say 'installing the first release'
  on_host sh -ec 'mkdir -p /etc/yum.repos.d
    printf "[cortex]\nname=cortex\nbaseurl=file:///srv/repo\ngpgcheck=0\n" > /etc/yum.repos.d/cortex.repo'
  on_host dnf -qy install {cortex,neuron,neuron-engine-embedded}-"$VERSION-1.first"
  test "$(on_host id -gn neuron)" = neuron
  on_host id -Gn neuron | grep -w video | grep -qw render
  test "$(on_host stat -c '%U:%G %a' /etc/cortex/neuron.toml)" = 'root:neuron 640'
  test "$(on_host systemctl is-enabled cortex neuron || :)" = $'disabled\ndisabled'
  on_host firewall-cmd --permanent --zone=internal --add-service=neuron --add-service=cortex

  say 'enabling the services and sending a request'
  on_host sh -ec 'mkdir -p /srv/models
    /usr/lib64/neuron/bin/python3 -I -c "
from pathlib import Path
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf
write_tiny_gguf(Path(\"/srv/models/tiny.gguf\"))"
    sed -i "s/^# offer = .*/offer = true/" /etc/cortex/neuron.toml
    printf "[[harnesses]]\nname = \"embedded\"\n" >> /etc/cortex/neuron.toml
    printf "[[neurons]]\nname = \"here\"\nendpoint = \"http://127.0.0.1:9090\"\n" > /etc/cortex/cortex.toml
    printf "[[models]]\nid = \"tiny\"\nharness = \"embedded\"\nsource = \"/srv/models/tiny.gguf\"\n" \
      > /etc/cortex/models.toml
    cortex config check
    systemctl enable --now neuron cortex'
  send_request
  local first
  first=$(engine_pid)
  on_host setpriv --reuid=nobody --clear-groups cortex doctor

  say 'upgrading all packages'
  on_host dnf -qy upgrade neuron neuron-engine-embedded cortex
  on_host rpm -q cortex neuron | grep -c second | grep -qx 2
  on_host systemctl is-active neuron cortex
  send_request
  test "$(engine_pid)" = "$first"

  say 'killing both daemons'
  on_host systemctl kill --kill-whom=main --signal=KILL neuron cortex
  for _ in $(seq 30); do
    send_request 2>/dev/null && break || sleep 1
  done
  send_request
  test "$(engine_pid)" = "$first"

  say 'removing the packages'
  on_host cortex nodes drain here --yes
  on_host dnf -qy remove cortex neuron neuron-engine-embedded
  test "$(on_host pgrep -fc 'cortex|neuron' || :)" = 0
  say 'all steps passed'
}

mkdir -p "$HOST"
root_filesystem
packages first second
boot
run_tests
