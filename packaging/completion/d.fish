# fish completion for d: the daemon knows the commands, their options, and values.

function __d_complete
    set --local words (commandline --tokenize --cut-at-cursor --current-process)
    d --complete $words[2..-1] (commandline --current-token --cut-at-cursor) 2>/dev/null
end
complete --command d --no-files --arguments '(__d_complete)'
