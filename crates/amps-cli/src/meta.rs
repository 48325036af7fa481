//! Completion scripts and the manual page, generated from the command line's own definition.

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::failure::{Exit, Failure};
use crate::output::raw;

/// Prints a completion script.
///
/// # Errors
/// The reader went away.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "amps", &mut script);
    raw(&script)?;
    Ok(Exit::Ok)
}

/// Prints the manual page: the command, then each subcommand, in one document.
///
/// # Errors
/// The reader went away.
pub(crate) fn man() -> Result<Exit, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    pages(&command, "amps", &mut page).map_err(|e| Failure::output(&e))?;
    raw(&page)?;
    Ok(Exit::Ok)
}

fn pages(command: &clap::Command, name: &str, out: &mut Vec<u8>) -> std::io::Result<()> {
    clap_mangen::Man::new(command.clone())
        .title(name.replace(' ', "-"))
        .render(out)?;
    for inner in command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        pages(inner, &format!("{name} {}", inner.get_name()), out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        crate::args::Cli::command().debug_assert();
    }
}
