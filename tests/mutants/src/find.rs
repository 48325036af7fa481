//! Finds places where a slip could be made, and the text that makes it at run time.

use std::collections::HashSet;
use std::ops::Range;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Pat, ReturnType, Signature, Stmt, Type};

/// One slip. `pieces` hold `{n}` where its number goes.
#[derive(Clone, Debug)]
pub struct Slip {
    pub line: usize,
    pub function: String,
    pub what: String,
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
pub struct Piece {
    pub range: Range<usize>,
    pub text: String,
    pub side: Side,
}

/// Closing text stands before opening text at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Close,
    Open,
}

/// The slips of one source file, outer ones first.
pub fn slips(source: &str) -> syn::Result<Vec<Slip>> {
    let file = syn::parse_file(source)?;
    let mut finder = Finder {
        source,
        slips: Vec::new(),
        functions: Vec::new(),
        forced: HashSet::new(),
    };
    finder.visit_file(&file);
    Ok(finder.slips)
}

struct Finder<'a> {
    source: &'a str,
    slips: Vec<Slip>,
    functions: Vec<String>,
    /// What is already forced to be true or false; negating it as well adds nothing.
    forced: HashSet<(usize, usize)>,
}

/// Calls that change nothing that a test could see.
const IDLE: [&str; 4] = ["reserve", "shrink_to_fit", "with_capacity", "inspect_err"];
/// Methods whose closure returns a bool.
const PREDICATES: [&str; 16] = [
    "filter",
    "any",
    "all",
    "position",
    "rposition",
    "find",
    "take_while",
    "skip_while",
    "is_some_and",
    "is_ok_and",
    "is_err_and",
    "is_none_or",
    "retain",
    "partition_point",
    "take_if",
    "wait_while",
];
/// Methods whose last argument is a number that may be one off.
const COUNTED: [&str; 8] = [
    "saturating_sub",
    "saturating_add",
    "checked_sub",
    "checked_add",
    "wrapping_add",
    "wrapping_sub",
    "div_ceil",
    "next_multiple_of",
];

impl Finder<'_> {
    fn text(&self, node: &impl Spanned) -> String {
        let text = &self.source[node.span().byte_range()];
        let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((cut, _)) = line.char_indices().nth(90) {
            line.truncate(cut);
            line.push('…');
        }
        line
    }

    fn add(&mut self, span: Span, what: String, pieces: Vec<Piece>) {
        self.slips.push(Slip {
            line: span.start().line,
            function: self.functions.join("::"),
            what,
            pieces,
        });
    }

    /// Text before and after a node.
    fn wrap(&mut self, node: &impl Spanned, what: String, before: &str, behind: &str) {
        let range = node.span().byte_range();
        let pieces = vec![
            piece(range.start..range.start, before, Side::Open),
            piece(range.end..range.end, behind, Side::Close),
        ];
        self.add(node.span(), what, pieces);
    }

    fn force(&mut self, expr: &Expr, to: bool) {
        if self.text(expr).contains("planted") {
            return;
        }
        let range = expr.span().byte_range();
        self.forced.insert((range.start, range.end));
        let what = format!("`{}` is {to}", self.text(expr));
        match to {
            true => self.wrap(expr, what, "((", ") || ::amps_slip::on({n}))"),
            false => self.wrap(expr, what, "((", ") && !::amps_slip::on({n}))"),
        }
    }

    /// The condition of an `if`, a `while` or a match arm.
    fn condition(&mut self, condition: &Expr, endless: bool) {
        if has_let(condition) {
            let end = condition.span().byte_range().end;
            let what = format!("`{}` does not hold", self.text(condition));
            if !what.contains("planted") {
                let text = " && !::amps_slip::on({n})";
                self.add(
                    condition.span(),
                    what,
                    vec![piece(end..end, text, Side::Close)],
                );
            }
            return;
        }
        let op = match condition {
            Expr::Binary(b) => Some(b.op),
            _ => None,
        };
        // The parts of a conjunction are forced to be true one by one, and correspondingly for a
        // disjunction.
        if !matches!(op, Some(BinOp::And(_))) && !endless {
            self.force(condition, true);
        }
        if !matches!(op, Some(BinOp::Or(_))) {
            self.force(condition, false);
        }
    }

    /// A whole function that does nothing, or returns at once.
    fn whole(&mut self, signature: &Signature, block: &Block) {
        let answers: &[&str] = match &signature.output {
            ReturnType::Default if block.stmts.len() > 1 => &[""],
            ReturnType::Default => &[],
            ReturnType::Type(_, of) => answers(of),
        };
        let at = block.brace_token.span.open().byte_range().end;
        for answer in answers {
            let text = format!(" if ::amps_slip::on({{n}}) {{ return {answer}; }}");
            let what = format!("`{}` returns {answer} at once", signature.ident);
            self.add(
                signature.ident.span(),
                what.replace("returns  at", "returns at"),
                vec![piece(at..at, &text, Side::Open)],
            );
        }
    }

    fn function(&mut self, attrs: &[Attribute], signature: &Signature, block: &Block) {
        if for_tests(attrs)
            || signature.constness.is_some()
            || matches!(signature.safety, syn::Safety::Unsafe(_))
        {
            return;
        }
        self.functions.push(signature.ident.to_string());
        self.whole(signature, block);
        self.visit_block(block);
        self.functions.pop();
    }

    /// A call or an assignment that is left out.
    fn left_out(&mut self, expr: &Expr, whole: &impl Spanned) {
        let call = match expr {
            Expr::Try(e) => &*e.expr,
            e => e,
        };
        let call = match call {
            Expr::Await(e) => &*e.base,
            e => e,
        };
        let worth = match call {
            Expr::Call(_) | Expr::Assign(_) => true,
            Expr::MethodCall(call) => !IDLE.contains(&&*call.method.to_string()),
            Expr::Binary(b) => is_assignment(&b.op),
            _ => false,
        };
        let text = self.text(expr);
        if worth && !text.starts_with("drop(") {
            self.wrap(
                whole,
                format!("`{text}` left out"),
                "if !::amps_slip::on({n}) { ",
                " }",
            );
        }
    }

    /// Another operator between two operands that are evaluated once.
    fn operator(&mut self, binary: &syn::ExprBinary, other: &str, by_reference: bool) {
        let (left, op, right) = (
            binary.left.span().byte_range(),
            binary.op.span().byte_range(),
            binary.right.span().byte_range(),
        );
        let sign = &self.source[op.clone()];
        let what = format!("`{}`: `{sign}` is `{other}`", self.text(binary));
        let (r, d) = if by_reference { ("&", "*") } else { ("", "") };
        let behind = format!(
            ")) {{ (l, r) => if ::amps_slip::on({{n}}) {{ {d}l {other} {d}r }} else {{ {d}l {sign} {d}r }} }})"
        );
        self.add(
            binary.op.span(),
            what,
            vec![
                piece(left.start..left.start, &format!("(match ({r}("), Side::Open),
                piece(op, &format!("), {r}("), Side::Open),
                piece(right.end..right.end, &behind, Side::Close),
            ],
        );
    }

    fn is_forced(&self, node: &impl Spanned) -> bool {
        let range = node.span().byte_range();
        self.forced.contains(&(range.start, range.end))
    }

    fn tail(&mut self, block: &Block) {
        if let Some(Stmt::Expr(expr, None)) = block.stmts.last()
            && attributes(expr).is_empty()
        {
            self.left_out(expr, expr);
        }
    }
}

fn piece(range: Range<usize>, text: &str, side: Side) -> Piece {
    Piece {
        range,
        text: text.to_owned(),
        side,
    }
}

fn has_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(b) if matches!(b.op, BinOp::And(_)) => has_let(&b.left) || has_let(&b.right),
        _ => false,
    }
}

fn is_assignment(op: &BinOp) -> bool {
    use BinOp::*;
    matches!(
        op,
        AddAssign(_)
            | SubAssign(_)
            | MulAssign(_)
            | DivAssign(_)
            | RemAssign(_)
            | BitAndAssign(_)
            | BitOrAssign(_)
            | BitXorAssign(_)
            | ShlAssign(_)
            | ShrAssign(_)
    )
}

fn for_tests(attrs: &[Attribute]) -> bool {
    attrs
        .iter()
        .any(|a| a.path().is_ident("cfg") || a.path().is_ident("test"))
}

fn attributes(expr: &Expr) -> &[Attribute] {
    match expr {
        Expr::Call(e) => &e.attrs,
        Expr::MethodCall(e) => &e.attrs,
        Expr::Assign(e) => &e.attrs,
        _ => &[],
    }
}

/// What a function of this type may return without having looked at anything.
fn answers(of: &Type) -> &'static [&'static str] {
    let Type::Path(path) = of else {
        return match of {
            Type::Tuple(t) if t.elems.is_empty() => &[""],
            _ => &[],
        };
    };
    let Some(last) = path.path.segments.last() else {
        return &[];
    };
    let first = match &last.arguments {
        syn::PathArguments::AngleBracketed(of) => of.args.first(),
        _ => None,
    };
    let inner = match first {
        Some(syn::GenericArgument::Type(of)) => Some(of),
        _ => None,
    };
    match (&*last.ident.to_string(), inner) {
        ("bool", _) => &["true", "false"],
        ("Option", _) => &["None"],
        ("Vec", _) => &["Vec::new()"],
        ("u64" | "u32" | "usize" | "u8" | "u16", _) => &["0", "1"],
        ("Result", Some(of)) => match answers(of) {
            [""] => &["Ok(())"],
            ["true", "false"] => &["Ok(true)", "Ok(false)"],
            ["None"] => &["Ok(None)"],
            ["0", "1"] => &["Ok(0)", "Ok(1)"],
            _ => &[],
        },
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig, block);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let shows = item.trait_.as_ref().is_some_and(|(.., path, _)| {
            let last = path.segments.last().map(|s| s.ident.to_string());
            matches!(last.as_deref(), Some("Debug" | "Display" | "Error"))
        });
        if shows || for_tests(&item.attrs) {
            return;
        }
        let of = self.text(&*item.self_ty);
        let before = std::mem::replace(&mut self.functions, vec![of]);
        visit::visit_item_impl(self, item);
        self.functions = before;
    }

    // Where no call may be, or where it means nothing.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_item_enum(&mut self, _: &'ast syn::ItemEnum) {}
    fn visit_item_struct(&mut self, _: &'ast syn::ItemStruct) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_expr_unsafe(&mut self, _: &'ast syn::ExprUnsafe) {}
    fn visit_type(&mut self, _: &'ast Type) {}
    fn visit_path(&mut self, _: &'ast syn::Path) {}
    fn visit_pat(&mut self, _: &'ast Pat) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_macro(&mut self, _: &'ast syn::Macro) {}

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_expr_if(&mut self, expr: &'ast syn::ExprIf) {
        self.condition(&expr.cond, false);
        if self.text(&*expr.cond).contains("planted") {
            // What a planted bug does is not part of what ships.
            if let Some((_, otherwise)) = &expr.else_branch {
                self.visit_expr(otherwise);
            }
            return;
        }
        if expr.else_branch.is_none() {
            self.tail(&expr.then_branch);
        }
        visit::visit_expr_if(self, expr);
    }

    fn visit_expr_while(&mut self, expr: &'ast syn::ExprWhile) {
        self.condition(&expr.cond, true);
        self.tail(&expr.body);
        visit::visit_expr_while(self, expr);
    }

    fn visit_expr_for_loop(&mut self, expr: &'ast syn::ExprForLoop) {
        self.tail(&expr.body);
        visit::visit_expr_for_loop(self, expr);
    }

    fn visit_expr_match(&mut self, expr: &'ast syn::ExprMatch) {
        let catches_all = expr
            .arms
            .last()
            .is_some_and(|arm| matches!(arm.pat, Pat::Wild(_)));
        let planted = self.text(&*expr.expr).contains("planted");
        if catches_all && !planted {
            for arm in &expr.arms[..expr.arms.len() - 1] {
                if !matches!(arm.pat, Pat::Guard(_))
                    && !arm.attrs.iter().any(|a| a.path().is_ident("cfg"))
                {
                    let end = arm.pat.span().byte_range().end;
                    let what = format!("no arm for `{}`", self.text(&arm.pat));
                    let text = " if !::amps_slip::on({n})";
                    self.add(
                        arm.pat.span(),
                        what,
                        vec![piece(end..end, text, Side::Close)],
                    );
                }
            }
        }
        self.visit_expr(&expr.expr);
        for arm in &expr.arms {
            if !planted || self.text(&arm.pat) != "true" {
                self.visit_arm(arm);
            }
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if for_tests(&arm.attrs) {
            return;
        }
        if let Pat::Guard(guarded) = &arm.pat {
            if self.text(&*guarded.guard).contains("planted") {
                return;
            }
            self.condition(&guarded.guard, false);
            self.visit_expr(&guarded.guard);
        }
        self.left_out(&arm.body, &*arm.body);
        self.visit_expr(&arm.body);
    }

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        use BinOp::*;
        match binary.op {
            And(_) | Or(_) => {
                for side in [&binary.left, &binary.right] {
                    let same = matches!((&**side, binary.op),
                        (Expr::Binary(b), And(_)) if matches!(b.op, And(_)))
                        || matches!((&**side, binary.op),
                        (Expr::Binary(b), Or(_)) if matches!(b.op, Or(_)));
                    if !same && !has_let(side) {
                        self.force(side, matches!(binary.op, And(_)));
                    }
                }
            }
            Lt(_) => self.operator(binary, "<=", true),
            Le(_) => self.operator(binary, "<", true),
            Gt(_) => self.operator(binary, ">=", true),
            Ge(_) => self.operator(binary, ">", true),
            Eq(_) | Ne(_) if !self.is_forced(binary) => {
                let what = format!("`{}` negated", self.text(binary));
                self.wrap(binary, what, "((", ") ^ ::amps_slip::on({n}))");
            }
            Add(_) => self.operator(binary, "-", false),
            Sub(_) => self.operator(binary, "+", false),
            Mul(_) => self.operator(binary, "/", false),
            Div(_) => self.operator(binary, "*", false),
            Rem(_) => self.operator(binary, "/", false),
            BitAnd(_) => self.operator(binary, "|", false),
            BitOr(_) => self.operator(binary, "&", false),
            _ => {}
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        if matches!(unary.op, syn::UnOp::Not(_))
            && !self.is_forced(unary)
            && !self.text(unary).contains("planted")
        {
            self.wrap(
                unary,
                format!("`{}` negated", self.text(unary)),
                "((",
                ") ^ ::amps_slip::on({n}))",
            );
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let method = call.method.to_string();
        match (&*method, call.args.last()) {
            ("min" | "max", Some(argument)) => {
                let other = if method == "min" { "max" } else { "min" };
                let (receiver, from, to) = (
                    call.receiver.span().byte_range(),
                    call.receiver.span().byte_range().end,
                    argument.span().byte_range(),
                );
                let end = call.span().byte_range().end;
                let behind = format!(
                    ")) {{ (l, r) => if ::amps_slip::on({{n}}) {{ l.{other}(r) }} else {{ l.{method}(r) }} }})"
                );
                self.add(
                    call.method.span(),
                    format!("`{}`: {other}", self.text(call)),
                    vec![
                        piece(receiver.start..receiver.start, "(match ((", Side::Open),
                        piece(from..to.start, "), (", Side::Open),
                        piece(to.end..end, &behind, Side::Close),
                    ],
                );
            }
            (name, Some(Expr::Closure(closure))) if PREDICATES.contains(&name) => {
                self.force(&closure.body, true);
                self.force(&closure.body, false);
            }
            (name, Some(argument))
                if COUNTED.contains(&name) && !matches!(argument, Expr::Lit(_)) =>
            {
                let what = format!("`{}`: one more", self.text(call));
                self.wrap(argument, what, "::amps_slip::bump({n}, ", ")");
            }
            _ => {}
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let name = self.text(&*call.func);
        if name.starts_with("Duration::") || name.contains("with_capacity") {
            return;
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_lit(&mut self, lit: &'ast syn::ExprLit) {
        if let syn::Lit::Int(number) = &lit.lit {
            let what = format!("`{number}` is one more");
            self.wrap(lit, what, "::amps_slip::bump({n}, ", ")");
        }
    }

    fn visit_stmt(&mut self, stmt: &'ast Stmt) {
        if let Stmt::Expr(expr, Some(_)) = stmt
            && attributes(expr).is_empty()
        {
            self.left_out(expr, stmt);
        }
        visit::visit_stmt(self, stmt);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !for_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> Vec<String> {
        slips(source)
            .unwrap()
            .into_iter()
            .map(|slip| slip.what)
            .collect()
    }

    #[test]
    fn each_part_of_a_condition_is_forced_and_what_only_tests_see_is_left_alone() {
        let source = "
            fn f(a: u64, b: bool) { if a < 3 && b { g(); } }
            #[cfg(test)] fn only_in_tests() { g(); }
            fn planted() { if planted::is(Bug::One) { g(); } }
            const fn constant(a: u64) -> u64 { a + 1 }";
        assert_eq!(
            found(source),
            [
                "`a < 3 && b` is false",
                "`a < 3` is true",
                "`b` is true",
                "`a < 3`: `<` is `<=`",
                "`3` is one more",
                "`g()` left out",
            ]
        );
    }

    #[test]
    fn a_let_chain_and_a_guard_may_fail_and_an_arm_may_be_missing() {
        let source = "
            fn f(a: Option<u64>) -> bool {
                if let Some(a) = a && a > 1 { return true; }
                match a { Some(a) if g(a) => true, None => false, _ => true }
            }";
        let found = found(source);
        for what in [
            "`f` returns true at once",
            "`let Some(a) = a && a > 1` does not hold",
            "`a > 1` is true",
            "`g(a)` is true",
            "`g(a)` is false",
            "no arm for `None`",
        ] {
            assert!(found.iter().any(|f| f == what), "{what}: {found:?}");
        }
    }
}
