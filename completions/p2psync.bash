# bash completion for p2psync; made by completions/make.py

_p2psync_sidecar() {
    local folder=$PWD
    while [[ -n $folder && ! -d $folder/.p2psync ]]; do folder=${folder%/*}; done
    [[ -d $folder/.p2psync ]] && printf '%s' "$folder/.p2psync"
}

_p2psync_words() {
    local sidecar
    case $1 in
    peers | configured)
        sidecar=$(_p2psync_sidecar)
        [[ -r $sidecar/config.toml ]] && sed -n 's/^[[:space:]]*\[peer\."\{0,1\}\([^]"]*\)"\{0,1\}\].*/\1/p' "$sidecar/config.toml"
        ;;
    runs)
        sidecar=$(_p2psync_sidecar)
        [[ -d $sidecar/history ]] && ls "$sidecar/history"
        ;;
    settings) printf '%s\n' sync.prefer sync.max-delete sync.lock-wait history.days history.percent ui.color ui.progress hooks.on_change hooks.on_conflict hooks.on_error hooks.shell connection.ssh-command connection.port connection.remote-command connection.reuse connection.compress connection.bwlimit ;;
    esac
}

_p2psync_values() {
    local cur=$1 kind=$2 IFS=$' \t\n'
    local words
    case $kind in peers | configured | runs | settings) words=$(_p2psync_words "$kind") ;; esac
    IFS=$'\n'
    case $kind in
    files) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")) ;;
    folders) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$cur")) ;;
    peers)
        COMPREPLY=($(compgen -W "$words" -- "$cur"; compgen -d -- "$cur"))
        ;;
    configured | runs | settings) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    conflicted)
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -G "$cur*.sync-conflict-*" | sed 's/\.sync-conflict-[0-9]\{8\}-[0-9]\{6\}-[A-Z2-7]*\(-[0-9]*\)\{0,1\}//' | sort -u))
        [[ ${COMPREPLY[*]} ]] || COMPREPLY=($(compgen -f -- "$cur"))
        ;;
    nothing) COMPREPLY=() ;;
    *) COMPREPLY=($(compgen -W "${kind// /$IFS}" -- "$cur")) ;;
    esac
}

_p2psync() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command="" word index skip=0
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if ((skip)); then skip=0; continue; fi
        case "$command/$word" in
        '/clone') command='clone' ;;
        '/completion') command='completion' ;;
        '/config') command='config' ;;
        '/conflicts') command='conflicts' ;;
        '/diff') command='diff' ;;
        '/fsck') command='fsck' ;;
        '/gc') command='gc' ;;
        '/ignore') command='ignore' ;;
        '/init') command='init' ;;
        '/log') command='log' ;;
        '/peer') command='peer' ;;
        '/resolve') command='resolve' ;;
        '/restore') command='restore' ;;
        '/serve') command='serve' ;;
        '/service') command='service' ;;
        '/show') command='show' ;;
        '/status') command='status' ;;
        '/sync') command='sync' ;;
        '/undo') command='undo' ;;
        '/watch') command='watch' ;;
        '/why') command='why' ;;
        'config/edit') command='config edit' ;;
        'config/get') command='config get' ;;
        'config/list') command='config list' ;;
        'config/set') command='config set' ;;
        'config/unset') command='config unset' ;;
        'peer/add') command='peer add' ;;
        'peer/list') command='peer list' ;;
        'peer/remove') command='peer remove' ;;
        'peer/rename') command='peer rename' ;;
        'peer/test') command='peer test' ;;
        'service/install') command='service install' ;;
        'service/status') command='service status' ;;
        'service/uninstall') command='service uninstall' ;;
        /-C | /--color) skip=1 ;;
        esac
    done
    case "$command/$prev" in
    '/-C') _p2psync_values "$cur" 'folders'; return ;;
    '/--color') _p2psync_values "$cur" 'auto always never'; return ;;
    'clone/--name') _p2psync_values "$cur" 'nothing'; return ;;
    'clone/--peer') _p2psync_values "$cur" 'peers'; return ;;
    'clone/-e' | 'clone/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'clone/-p' | 'clone/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'clone/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'clone/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'clone/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'diff/-e' | 'diff/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'diff/-p' | 'diff/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'diff/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'diff/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'diff/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'fsck/--peer') _p2psync_values "$cur" 'peers'; return ;;
    'fsck/-e' | 'fsck/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'fsck/-p' | 'fsck/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'fsck/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'fsck/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'fsck/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'gc/--days') _p2psync_values "$cur" 'nothing'; return ;;
    'gc/--percent') _p2psync_values "$cur" 'nothing'; return ;;
    'init/--name') _p2psync_values "$cur" 'nothing'; return ;;
    'log/--limit') _p2psync_values "$cur" 'nothing'; return ;;
    'peer add/-e' | 'peer add/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'peer add/-p' | 'peer add/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'peer add/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'peer add/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'peer add/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'peer test/-e' | 'peer test/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'peer test/-p' | 'peer test/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'peer test/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'peer test/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'peer test/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'resolve/--keep') _p2psync_values "$cur" 'ours theirs both merged'; return ;;
    'resolve/--prefer') _p2psync_values "$cur" 'configured'; return ;;
    'resolve/--tool') _p2psync_values "$cur" 'nothing'; return ;;
    'restore/--to') _p2psync_values "$cur" 'files'; return ;;
    'serve/--restrict-to') _p2psync_values "$cur" 'folders'; return ;;
    'status/--max-age') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--prefer') _p2psync_values "$cur" 'both newest local peer skip'; return ;;
    'sync/--path') _p2psync_values "$cur" 'files'; return ;;
    'sync/--exclude') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--include') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--exclude-from') _p2psync_values "$cur" 'files'; return ;;
    'sync/--max-size') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--mode') _p2psync_values "$cur" 'two-way push pull mirror'; return ;;
    'sync/--max-delete') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--accept-folder') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--approve') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--plan') _p2psync_values "$cur" 'files'; return ;;
    'sync/-e' | 'sync/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/-p' | 'sync/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'sync/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--lock-wait') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--timeout') _p2psync_values "$cur" 'nothing'; return ;;
    'sync/--progress') _p2psync_values "$cur" 'auto plain json off'; return ;;
    'watch/--prefer') _p2psync_values "$cur" 'both newest local peer skip'; return ;;
    'watch/--settle') _p2psync_values "$cur" 'nothing'; return ;;
    'watch/--poll') _p2psync_values "$cur" 'nothing'; return ;;
    'watch/--full-every') _p2psync_values "$cur" 'nothing'; return ;;
    'watch/-e' | 'watch/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'watch/-p' | 'watch/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'watch/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'watch/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'watch/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    'why/-e' | 'why/--ssh-command') _p2psync_values "$cur" 'nothing'; return ;;
    'why/-p' | 'why/--port') _p2psync_values "$cur" 'nothing'; return ;;
    'why/--remote-command') _p2psync_values "$cur" 'nothing'; return ;;
    'why/--compress') _p2psync_values "$cur" 'auto on off'; return ;;
    'why/--bwlimit') _p2psync_values "$cur" 'nothing'; return ;;
    esac
    case $command in
    '') local options='-V --version -C --color --debug -h --help' values='clone completion config conflicts diff fsck gc ignore init log peer resolve restore serve service show status sync undo watch why' ;;
    'clone') local options='--name --peer --create -e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit -q --quiet -h --help' values='folders' ;;
    'completion') local options='-h --help' values='bash zsh fish' ;;
    'config') local options='-h --help' values='edit get list set unset' ;;
    'config edit') local options='--user -h --help' values='nothing' ;;
    'config get') local options='-h --help' values='settings' ;;
    'config list') local options='--json -h --help' values='nothing' ;;
    'config set') local options='--user -h --help' values='settings' ;;
    'config unset') local options='--user -h --help' values='settings' ;;
    'conflicts') local options='--json -h --help' values='conflicted' ;;
    'diff') local options='--stat --exit-code -e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit --json -h --help' values='peers' ;;
    'fsck') local options='--peer --repair -e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit --json -h --help' values='nothing' ;;
    'gc') local options='--days --percent -n --dry-run -h --help' values='nothing' ;;
    'ignore') local options='--local --check -h --help' values='files' ;;
    'init') local options='--name -h --help' values='folders' ;;
    'log') local options='--limit --graph --json -h --help' values='files' ;;
    'peer') local options='-h --help' values='add list remove rename test' ;;
    'peer add') local options='-e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit -h --help' values='folders' ;;
    'peer list') local options='--json -h --help' values='nothing' ;;
    'peer remove') local options='-h --help' values='configured' ;;
    'peer rename') local options='-h --help' values='configured' ;;
    'peer test') local options='-e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit --json -h --help' values='peers' ;;
    'resolve') local options='--keep --all --prefer --tool -n --dry-run --json -h --help' values='conflicted' ;;
    'restore') local options='--to -n --dry-run --json -h --help' values='files' ;;
    'serve') local options='--create --restrict-to --read-only --append-only -h --help' values='folders' ;;
    'service') local options='-h --help' values='install status uninstall' ;;
    'service install') local options='-h --help' values='nothing' ;;
    'service status') local options='-h --help' values='nothing' ;;
    'service uninstall') local options='-h --help' values='nothing' ;;
    'show') local options='-h --help' values='files' ;;
    'status') local options='--check --max-age --json -h --help' values='nothing' ;;
    'sync') local options='-n --dry-run --prefer --path --exclude --include --exclude-from --max-size -x --one-file-system --mode -c --checksum --create --max-delete --accept-folder --approve --plan -e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit --lock-wait --timeout -y --yes --batch -v --verbose -q --quiet --progress --json -h --help' values='peers' ;;
    'undo') local options='-n --dry-run --json -h --help' values='runs' ;;
    'watch') local options='--prefer --settle --poll --full-every -e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit --json -h --help' values='peers' ;;
    'why') local options='--offline -e --ssh-command -p --port --remote-command --reuse --no-reuse --compress -z --bwlimit --json -h --help' values='files' ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    else
        _p2psync_values "$cur" "$values"
    fi
}

complete -F _p2psync p2psync
