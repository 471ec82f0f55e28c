#!/usr/bin/env bash
# Installs, configures and starts a real single-machine Slurm cluster (Debian's packages, with
# accounting) that listens on loopback only. Idempotent: run it as often as you like; exit 0 means
# that `srun hostname` has answered. Everything it writes is under $SLURM_DEV_DIR, but for the
# /etc/slurm/slurm.conf link, made only where there is none. Stop it with down.sh.
set -euo pipefail

# State, keys, sockets, pid files, logs; keep it short, as sockets' paths must be.
D=${SLURM_DEV_DIR:-/var/spool/slurm-dev}
# CPUs that each node claims: more than there are is accepted.
CPUS=${SLURM_DEV_CPUS:-$(nproc --all)}
MEM=${SLURM_DEV_MEM_MB:-$(( $(awk '/^MemTotal/{print $2}' /proc/meminfo) / 1024 * 8 / 10 ))}
# Above 0: pretended GPUs (gres alone), so that gpus_per_node=N is accepted.
GPUS=${SLURM_DEV_GPUS:-0}
# Above 1: that many emulated nodes, with a slurmd each, named HOST, HOST-2, ...
NODES=${SLURM_DEV_NODES:-1}
# slurmctld's; slurmdbd has PORT+2, slurmd number k PORT+10+k.
PORT=${SLURM_DEV_PORT:-6817}
WAIT=${SLURM_DEV_WAIT_S:-60}
PACKAGES="munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core"
T0=$(date +%s.%N)

say() {
  local seconds; seconds=$(awk -v a="$T0" -v b="$(date +%s.%N)" 'BEGIN{print b-a}')
  printf '[up.sh %5.1fs] %s\n' "$seconds" "$*" >&2
}
die() { say "ERROR: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
# the pid file names a live process (no zombie: init may reap late) of that program
alive() {
  local pid; pid=$(cat "$D/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] &&
    ! grep -q '^State:.*Z' "/proc/$pid/status"
}
# retry SECONDS COMMAND...: until it succeeds
retry() {
  local end=$(( $(date +%s) + $1 )); shift
  until "$@" >"$D/log/last-try.log" 2>&1 9>&-; do
    [ "$(date +%s)" -lt "$end" ] || { tail -5 "$D/log/last-try.log" >&2; return 1; }
    sleep 0.1
  done
}

[ "$(id -u)" = 0 ] || die "needs root (installs packages; the daemons run as root)"
export PATH=$PATH:/usr/sbin:/sbin
# It may be called from inside a job, or with another cluster's SLURM_CONF.
unset "${!SLURM_@}" "${!SBATCH_@}"
mkdir -p "$D/log" && chmod 755 "$D" && cd "$D"
# One starter at a time; the daemons get 9>&-, so that they do not hold the lock.
exec 9>"$D/.lock"; flock 9

# ---- 1. packages
programs="munged slurmctld slurmd slurmdbd srun sacct"
programs="$programs mariadbd mariadb mariadb-install-db my_print_defaults"
missing=; for b in $programs; do have "$b" || missing="$missing $b"; done
if [ -n "$missing" ]; then
  have apt-get || die "no apt-get, and missing:$missing"
  say "installing $PACKAGES (missing:$missing)"
  made_policy=
  if [ ! -e /usr/sbin/policy-rc.d ]; then  # keeps the packages from starting their own services
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    made_policy=1
  fi
  rc=0
  { apt-get update &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $PACKAGES; } \
    >"$D/apt.log" 2>&1 9>&- </dev/null || rc=$?
  [ -z "$made_policy" ] || rm -f /usr/sbin/policy-rc.d
  [ $rc = 0 ] || { tail -20 "$D/apt.log" >&2; die "apt-get failed ($D/apt.log)"; }
  say "installed"
fi

# ---- 2. the host's own name must be a loopback address: NoInAddrAny binds to what it resolves to
H=$(hostname -s)
hosts_line() {  # in front, and in place, as /etc/hosts may be a bind mount
  local old; old=$(cat /etc/hosts)
  printf '127.0.0.1 %s # slurm-dev\n%s\n' "$1" "$old" >/etc/hosts
}
names=$H; for k in $(seq 2 "$NODES"); do names="$names $H-$k"; done
for n in $names; do
  case "$(getent ahostsv4 "$n" | awk 'NR==1{print $1}')" in
    127.*) ;;
    *) say "/etc/hosts: $n is 127.0.0.1"; hosts_line "$n" ;;
  esac
done

# ---- 3. configuration: written anew where all of it is down; what runs in part keeps its own
export SLURM_CONF=$D/slurm.conf MYSQL_UNIX_PORT=$D/mariadb.socket
up=1; down=1
for p in mariadbd munged slurmdbd slurmctld; do if alive $p $p; then down=; else up=; fi; done
for n in $names; do if alive "slurmd-$n" slurmd; then down=; else up=; fi; done
if [ -n "$down" ]; then
  mkdir -p ctld; mkdir -p -m 700 db
  [ -s munge.key ] || (umask 077; head -c 1024 /dev/urandom >munge.key)
  # A wiped cluster would number its jobs from 1 again, and submitit would find the results of old
  # jobs in an old folder: start from the clock instead.
  [ -s first_job_id ] || echo $(( $(date +%s) % 60000000 + 1 )) >first_job_id
  {
    cat <<CONF
ClusterName=dev
SlurmctldHost=$H(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$D/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=$PORT
StateSaveLocation=$D/ctld
SlurmctldPidFile=$D/slurmctld.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdSpoolDir=$D/spool-%n
SlurmdPidFile=$D/slurmd-%n.pid
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
MessageTimeout=30
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
FirstJobId=$(cat first_job_id)
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStoragePass=$D/munge.socket
CONF
    gres=
    if [ "$GPUS" -gt 0 ]; then echo "GresTypes=gpu"; gres="Gres=gpu:$GPUS"; fi
    k=0; for n in $names; do k=$((k + 1))
      echo "NodeName=$n NodeHostname=$H NodeAddr=127.0.0.1 Port=$((PORT + 10 + k)) CPUs=$CPUS" \
        "RealMemory=$((MEM / NODES)) $gres State=UNKNOWN"
    done
    # Jobs of the partition high preempt those of debug, which get 20 s to save.
    common="Nodes=ALL DefMemPerCPU=$((MEM / NODES / CPUS / 2)) MaxTime=60 DefaultTime=5 State=UP"
    echo "PartitionName=debug Default=YES $common PriorityTier=1 GraceTime=20"
    echo "PartitionName=high $common PriorityTier=10 PreemptMode=OFF"
  } >slurm.conf.new && mv slurm.conf.new slurm.conf
  : >gres.conf  # a pretended GPU is a copy of /dev/null: without a device it counts 0
  for k in $(seq 0 $((GPUS - 1))); do
    [ -c "gpu$k" ] || mknod "gpu$k" c 1 3; echo "Name=gpu File=$D/gpu$k" >>gres.conf; done
  (umask 077; cat >slurmdbd.conf <<CONF
DbdHost=$H
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
PidFile=$D/slurmdbd.pid
LogFile=$D/log/slurmdbd.log
CONF
  )
  echo "export SLURM_CONF=$D/slurm.conf" >env.sh
fi
mkdir -p /etc/slurm
# So that a plain `sinfo` finds it.
[ -e /etc/slurm/slurm.conf ] || ln -sfn "$D/slurm.conf" /etc/slurm/slurm.conf

# ---- 4. daemons: each puts itself in the background (but mariadbd) and writes its pid file
if ! alive munged munged; then
  munged --key-file="$D/munge.key" --socket="$D/munge.socket" --pid-file="$D/munged.pid" \
    --log-file="$D/log/munged.log" --seed-file="$D/munge.seed" --num-threads=10 \
    </dev/null >>log/start.log 2>&1 9>&- \
    || die "munged did not start ($D/log/munged.log, start.log)"
fi
if ! alive mariadbd mariadbd; then
  if [ ! -d db/mysql ]; then
    mariadb-install-db --no-defaults --user=root --datadir="$D/db" --skip-test-db \
      --auth-root-authentication-method=socket --auth-root-socket-user=root \
      </dev/null >log/mariadb-install-db.log 2>&1 9>&- \
      || die "mariadb-install-db ($D/log/mariadb-install-db.log)"
  fi
  setsid mariadbd --no-defaults --user=root --datadir="$D/db" --socket="$D/mariadb.socket" \
    --pid-file="$D/mariadbd.pid" --skip-networking \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    --innodb-flush-log-at-trx-commit=0 </dev/null >>log/mariadbd.log 2>&1 9>&- &
  disown
  retry 30 mariadb --no-defaults --socket="$D/mariadb.socket" -e 'select 1' \
    || die "mariadbd ($D/log/mariadbd.log)"
fi
alive slurmdbd slurmdbd || slurmdbd </dev/null >>log/start.log 2>&1 9>&- \
  || die "slurmdbd ($D/log/slurmdbd.log, start.log)"
retry 30 sacctmgr -n list cluster || die "slurmdbd does not answer ($D/log/slurmdbd.log)"
alive slurmctld slurmctld || slurmctld -f "$SLURM_CONF" </dev/null >>log/start.log 2>&1 9>&- \
  || die "slurmctld ($D/log/slurmctld.log, start.log)"
for n in $names; do
  mkdir -p "spool-$n"
  alive "slurmd-$n" slurmd || slurmd -f "$SLURM_CONF" -N "$n" </dev/null >>log/start.log 2>&1 9>&- \
    || die "slurmd ($D/log/slurmd-$n.log, start.log)"
done

# ---- 5. does it answer?
retry 20 scontrol ping || die "slurmctld does not answer ($D/log/slurmctld.log)"
for n in $names; do  # left down or drained by an earlier accident
  if sinfo -h -n "$n" -o %T | grep -qiE 'down|drain|inval'; then
    scontrol update nodename="$n" state=resume 2>/dev/null || :
  fi
done
nodes_up() {
  local s; s=$(sinfo -h -o %T) && [ -n "$s" ] &&
    ! grep -qvE '^(idle|mixed|allocated|completing)$' <<<"$s"
}
give_up() { sinfo -R >&2; tail -20 log/slurmctld.log >&2; die "$*"; }
retry 20 nodes_up || give_up "a node did not come up ($D/log)"
if [ -n "$up" ]; then say "already up: $(sinfo -h -o '%P %D node(s) %T' | tr '\n' ';')"; exit 0; fi
ok() { timeout 15 srun --quiet -t1 -N"$NODES" -n"$NODES" -c1 --mem=16 hostname 9>&-; }
retry "$WAIT" ok || give_up "srun hostname has not answered in $WAIT s"
say "up: srun hostname -> $(ok | tr '\n' ' ')"
say "$(sinfo -h -o '%P %D node(s) %c CPUs %T' | tr '\n' ';')"
say "clients: . $D/env.sh   logs: $D/log   stop: down.sh"
