#!/usr/bin/env bash
# Stops just the daemons that up.sh started: cancels the cluster's jobs, then ends each daemon by
# its pid file (checked against /proc, so that a recycled pid is never hit). --purge removes the
# state, too. Exit 0: all are gone.
set -uo pipefail
D=${SLURM_DEV_DIR:-/var/spool/slurm-dev}
export PATH=$PATH:/usr/sbin:/sbin
unset "${!SLURM_@}" "${!SBATCH_@}"
export SLURM_CONF=$D/slurm.conf
say() { echo "[down.sh] $*" >&2; }
[ -d "$D" ] || { say "nothing at $D"; exit 0; }
exec 9>"$D/.lock"; flock 9
running() {
  [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] &&
    ! grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null
}
rc=0
# stop PIDFILE PROGRAM SECONDS
stop() {
  local pid; pid=$(cat "$D/$1.pid" 2>/dev/null) || return 0
  if [ -n "$pid" ] && running "$pid" "$2"; then
    kill -TERM "$pid"
    for _ in $(seq $(( $3 * 20 ))); do running "$pid" "$2" || break; sleep 0.05; done
    if running "$pid" "$2"; then
      say "$1 ($pid) did not stop in $3 s: SIGKILL"; kill -KILL "$pid"; sleep 0.5
    fi
    if running "$pid" "$2"; then say "$1 ($pid) is still there"; rc=1; return; fi
    say "$1 ($pid) stopped"
  fi
  rm -f "$D/$1.pid"
}
pid=$(cat "$D/slurmctld.pid" 2>/dev/null || echo 0)
if running "$pid" slurmctld && timeout 10 scontrol ping >/dev/null 2>&1; then
  jobs=$(timeout 10 squeue -h -o %A | sort -u)
  if [ -n "$jobs" ]; then
    say "cancelling jobs:" $jobs
    timeout 20 scancel $jobs 2>/dev/null
    for _ in $(seq 300); do [ -z "$(timeout 10 squeue -h -o %A)" ] && break; sleep 0.1; done
  fi
fi
for f in "$D"/slurmd-*.pid; do [ -e "$f" ] && stop "$(basename "$f" .pid)" slurmd 15; done
stop slurmctld slurmctld 20
stop slurmdbd slurmdbd 20
stop munged munged 10
stop mariadbd mariadbd 30
[ "$(readlink /etc/slurm/slurm.conf 2>/dev/null)" = "$D/slurm.conf" ] &&
  rm -f /etc/slurm/slurm.conf
if [ "${1:-}" = --purge ] && [ $rc = 0 ]; then
  if grep -q '# slurm-dev$' /etc/hosts; then
    rest=$(grep -v '# slurm-dev$' /etc/hosts); printf '%s\n' "$rest" >/etc/hosts
  fi
  case "$D" in
    */slurm-dev*) rm -rf "$D"; say "removed $D" ;;
    *) say "not removing $D (its name has no slurm-dev)" ;;
  esac
fi
exit $rc
