# fish completion for d: the daemon knows the commands, their options, and values.

function __d_complete
    set --local words (commandline --tokenize --cut-at-cursor --current-process)
    # Nothing that is offered has a quote in it, and the one that is still open belongs to no word.
    set --local word (string replace --all --regex '[\'"\\\\]' '' -- (commandline --current-token --cut-at-cursor))
    d --complete $words[2..-1] "$word" 2>/dev/null
end
complete --command d --no-files --arguments '(__d_complete)'
